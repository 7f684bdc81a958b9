"""An operator's pages: users and their tokens, and whether the audit log is whole."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from flows.gateway import operator
from flows.gateway.pages_forms import GivenForm
from flows.gateway.pages_session import OperatorVisitor
from flows.gateway.pages_views import render, say, see
from flows.gateway.parameters import After, UserPath
from flows.gateway.schemas import NewUser
from flows.gateway.state import GatewayState

router = APIRouter(prefix="/operator")

PER_PAGE = 50


@router.get("")
def users(request: Request, user: OperatorVisitor, gateway: GatewayState, after: After = 0) -> Response:
    """All users, and the form to add one."""
    found = operator.list_users(user, gateway, PER_PAGE, after)
    return render(request, "users.html", found=found, after=after)


@router.post("/users")
def add_user(request: Request, user: OperatorVisitor, gateway: GatewayState, form: GivenForm) -> Response:
    """Make a user; the token is shown once, here, and goes nowhere else."""
    new = form.into(NewUser, name=form.text("name"), role=form.text("role"), expires=form.end("days"))
    return render(request, "token.html", made=operator.create_user(new, user, gateway))


@router.post("/users/{name}/token")
def new_token(
    name: UserPath, request: Request, user: OperatorVisitor, gateway: GatewayState, form: GivenForm
) -> Response:
    """Make a new token for a user; the others are worth nothing from now on."""
    return render(request, "token.html", made=operator.replace_token(name, user, gateway))


@router.post("/users/{name}/disable")
def disable(
    name: UserPath, request: Request, user: OperatorVisitor, gateway: GatewayState, form: GivenForm
) -> Response:
    """Shut a user out."""
    operator.disable_user(name, user, gateway)
    say(request, f"{name} was shut out.")
    return see("/operator")


@router.post("/users/{name}/enable")
def enable(name: UserPath, request: Request, user: OperatorVisitor, gateway: GatewayState, form: GivenForm) -> Response:
    """Let a user in again."""
    operator.enable_user(name, user, gateway)
    say(request, f"{name} was let in again.")
    return see("/operator")


@router.post("/audit/verify")
def verify(request: Request, user: OperatorVisitor, gateway: GatewayState, form: GivenForm) -> Response:
    """Check the whole audit log."""
    return render(request, "verdict.html", verdict=operator.verify_audit(user, gateway))
