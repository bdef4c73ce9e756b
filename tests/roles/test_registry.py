"""The list of roles, and the names that operators may use for them."""

import pytest

from nightmill.errors import SetupError
from nightmill.roles.registry import ROLE_NAMES, ROLES, ProcessGroup, resolve_roles, roles_of
from nightmill.runtime import child
from nightmill.runtime.components import Components
from nightmill.runtime.programs import role_programs
from nightmill.settings import load


def test_every_role_has_a_method_of_components_that_makes_it():
    for role in ROLES:
        assert callable(getattr(Components, role.name))


def test_every_role_runs_in_a_process_of_serve():
    settings = load(flags={"worker": {"processes": 2}}, environment={})
    programs = role_programs(settings)
    assert {program.kind for program in programs} == {child.ROLES}
    running = [role for program in programs for role in program.arguments[1:]]
    assert running == ["worker:0", "worker:1", *roles_of(ProcessGroup.KEEPER)]
    assert {role.partition(":")[0] for role in running} == set(ROLE_NAMES)


def test_the_earlier_name_of_maintenance_is_accepted():
    assert resolve_roles(["warden"]) == ("maintenance",)
    assert resolve_roles(["finalizer", "warden", "maintenance", "intake"]) == (
        "intake",
        "finalizer",
        "maintenance",
    )


@pytest.mark.parametrize(("names", "shown"), [(["worker", "guard"], "guard"), ([], "")])
def test_a_role_that_does_not_exist_is_refused(names: list[str], shown: str):
    with pytest.raises(
        SetupError, match=f"there is no role '{shown}'; choose from worker, intake, finalizer"
    ):
        resolve_roles(names)
