"""The OpenAPI document holds: schemathesis calls every operation with what it allows and with what it does not."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as openapi

from tests.flows.gateway.conftest import Site, png

CHECKS = [
    not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_headers_conformance,
    openapi.response_schema_conformance,
    openapi.negative_data_rejection,
]

EXAMPLES = [
    ("user", GenerationMode.POSITIVE, 3),
    ("owner", GenerationMode.POSITIVE, 3),
    ("operator", GenerationMode.POSITIVE, 5),
    ("operator", GenerationMode.NEGATIVE, 4),
]
"""Who calls with what, and how many examples of each operation."""


@pytest.fixture(scope="module")
def schema(site: Site) -> Any:
    schema = schemathesis.openapi.from_url(f"{site.address}/openapi.json")
    schema.config.generation.update(with_security_parameters=False)  # test_matrix.py is about tokens
    schema.config.checks.negative_data_rejection.expected_statuses += ["413"]
    return schema


@pytest.fixture(scope="module")
def known(site: Site) -> dict[str, Any]:
    """What is there: half of the valid calls are about it."""
    done = site.upload(png(1), "image/png").json()["id"]
    site.serve(done)
    asked = site.registry.ask_access(site.id_of("user"), "tiny", "to see", images=7)
    grant = site.call("GET", "grants").json()["items"][0]["id"]
    return {
        "restoration_id": done,
        "access_request_id": asked.id,
        "grant_id": grant,
        "dataset": "tiny",
        "version": 1,
        "name": site.names["other"],
    }


@pytest.mark.parametrize(("caller", "mode", "count"), EXAMPLES)
def test_every_operation_as_documented(
    site: Site, schema: Any, known: dict[str, Any], caller: str, mode: GenerationMode, count: int
) -> None:
    failures = []
    for result in schema.get_all_operations():
        operation = result.ok()
        try:
            strategy = operation.as_strategy(generation_mode=mode)

            @given(case=strategy, there=st.booleans())
            @settings(
                max_examples=count,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def check(case: Case, there: bool) -> None:
                if there and mode is GenerationMode.POSITIVE:
                    parameters = case.path_parameters or {}
                    parameters.update({name: known[name] for name in parameters if name in known})
                answer = case.call(base_url=site.address, headers=site.headers(caller), timeout=120)
                if answer.status_code == 201 and case.operation.definition.raw["operationId"] == "rotate_token":
                    site.tokens[caller] = answer.json()["token"]
                case.validate_response(answer, checks=CHECKS)

            check()
        except Exception as error:
            if type(error).__name__ == "Unsatisfiable":  # nothing invalid can be sent to it
                continue
            failures.append(f"{operation.label}: {type(error).__name__}: {error}")
    assert not failures, "\n\n".join(failures)
