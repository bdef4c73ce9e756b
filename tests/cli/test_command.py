"""Arguments, one-line errors, exit codes, and the speed of `--help`."""

import resource
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from openai import OpenAI

import nightmill as package
from nightmill.cli.failures import MEANINGS, ExitCode, end_code, guarded
from nightmill.cli.screen import clean
from nightmill.errors import NightmillError, SetupError, UnavailableError

ROOT = Path(__file__).parents[2]


def test_without_arguments_the_help_is_printed(nightmill):
    ran = nightmill()
    assert ran.code == 0
    for name in ("serve", "run", "validate", "submit", "list", "show", "watch", "results", "cancel", "files"):
        assert f"\n  {name} " in ran.out


def test_version(nightmill):
    assert nightmill("version").out == f"{package.__version__}\n"
    assert nightmill("version", "--json").json == {"version": package.__version__}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serv"], "did you mean 'serve'?"),
        (["show"], "Missing argument 'ID'; see 'nightmill show --help'"),
        (["run", "nowhere.jsonl", "--emulate"], "'nowhere.jsonl' does not exist; see 'nightmill run --help'"),
        (["serve", "--port", "http"], "Invalid value for '--port'"),
        (["list", "--limit", "0"], "--limit"),
        (["--nonsense"], "there is no option --nonsense"),
    ],
)
def test_a_wrong_command_line_prints_one_line_and_exits_with_2(nightmill, words, message):
    ran = nightmill(*words)
    assert ran.code == ExitCode.BAD_INPUT
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert ran.out == ""


def test_an_error_in_the_settings_names_the_setting(nightmill):
    ran = nightmill("serve", "--emulate", "--port", "99999")
    assert ran.code == ExitCode.SETUP
    assert "api.port" in ran.err


def test_help_is_fast_and_imports_no_heavy_package():
    program = (
        "import sys; from nightmill import cli; cli.invoke(['--help']); "
        "heavy = {'openai', 'rich', 'pydantic', 'fastapi', 'sqlalchemy', 'msgspec', 'asyncio'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.endswith("[]\n")
    # CPU time, because wall time depends on the load of the machine.
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 0.3


def test_shell_completion_offers_the_commands(command):
    ran = command(_NIGHTMILL_COMPLETE="complete_bash", COMP_WORDS="nightmill s", COMP_CWORD="1")
    assert {"serve", "submit", "show"} <= set(ran.out.split())


def test_shell_completion_behind_an_unknown_command_prints_no_error(command):
    ran = command(_NIGHTMILL_COMPLETE="complete_bash", COMP_WORDS="nightmill foo s", COMP_CWORD="2")
    assert (ran.code, ran.err) == (0, "")


def test_every_exit_code_is_documented():
    assert set(MEANINGS) == set(ExitCode)
    raised = {error.exit_code for error in NightmillError.__subclasses__()} - {NightmillError.exit_code}
    assert raised <= set(ExitCode)


def test_each_final_status_has_its_own_exit_code():
    ends = [("completed", 0), ("completed", 2), ("failed", 0), ("expired", 1), ("cancelled", 0)]
    assert [end_code(*end) for end in ends] == [0, 1, 2, 3, 4]


def raising(error: BaseException):
    def work() -> None:
        raise error

    return work


def test_an_error_inside_a_task_group_is_printed_like_any_other(capsys):
    group = ExceptionGroup("tasks", [ExceptionGroup("more", [SetupError("the port is taken")])])
    assert guarded(raising(group)) == ExitCode.SETUP
    assert capsys.readouterr().err == "nightmill: the port is taken\n"


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), ExceptionGroup("tasks", [SetupError("x"), ZeroDivisionError()])]
)
def test_an_unexpected_exception_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        guarded(raising(error))


def test_ctrl_c_exits_with_130(capsys):
    assert guarded(raising(KeyboardInterrupt())) == ExitCode.INTERRUPTED
    assert capsys.readouterr().err == "nightmill: stopped\n"


def test_an_unavailable_error_exits_with_75(capsys):
    assert guarded(raising(UnavailableError("away"))) == ExitCode.TRY_AGAIN
    assert capsys.readouterr().err == "nightmill: away\n"


def test_the_error_for_a_missing_server_says_how_to_start_one(nightmill, free_port):
    ran = nightmill("list", "--base-url", f"http://127.0.0.1:{free_port}/v1")
    assert ran.code == ExitCode.TRY_AGAIN
    assert ran.err == (
        f"nightmill: no server at http://127.0.0.1:{free_port}; start one with: nightmill serve --emulate\n"
    )


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, ExitCode.BAD_INPUT, "no tabs; set OPENAI_API_KEY to a key of this server"),
        (404, ExitCode.BAD_INPUT, "no tabs"),
        (409, ExitCode.BAD_INPUT, "no tabs"),
        (429, ExitCode.TRY_AGAIN, "no tabs; try again"),
        (503, ExitCode.TRY_AGAIN, "no tabs; try again"),
    ],
)
def test_a_refusal_by_the_server_prints_one_line(capsys, status, code, message):
    with OpenAI(api_key="x", base_url="http://127.0.0.1:9/v1") as client:
        import httpx2

        response = httpx2.Response(
            status,
            json={"error": {"message": "no\n\ttabs", "type": "t"}},
            request=httpx2.Request("GET", "http://127.0.0.1:9/v1/batches"),
        )
        error = client._make_status_error_from_response(response)
    assert isinstance(error, openai.APIStatusError)
    assert guarded(raising(error)) == code
    assert capsys.readouterr().err.startswith(f"nightmill: {message}")


def test_control_characters_in_foreign_text_are_removed():
    assert clean("a\x1b[2Jb\r\nc\u202e\x07") == "a[2Jb c"


def refused(
    status: int, body: object, *, url: str = "http://127.0.0.1:9/v1/batches"
) -> openai.APIStatusError:
    import httpx2

    response = httpx2.Response(status, json=body, request=httpx2.Request("GET", url))
    with OpenAI(api_key="x", base_url="http://127.0.0.1:9/v1") as client:
        return client._make_status_error_from_response(response)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/batches", "the base URL {} does not end in /v1; set OPENAI_BASE_URL={}/v1"),
        ("/mill/files/f/content", "the base URL {}/mill does not end in /v1; set OPENAI_BASE_URL={}/mill/v1"),
        ("/v1/chat/batches", "the base URL {}/v1/chat goes on behind /v1; set OPENAI_BASE_URL={}/v1"),
        ("/v1/batches", "{}/v1 has no Batch API; name a server that has it in OPENAI_BASE_URL"),
        (
            "/nightmill/v1/upstreams",
            "{} is not a nightmill server, and only those have what this command needs",
        ),
    ],
)
@pytest.mark.parametrize("body", [{"detail": "Not Found"}, {"error": {"message": "Invalid URL (GET /x)"}}])
def test_an_unknown_path_names_what_is_wrong_with_the_base_url(capsys, path, said, body):
    server = "http://gpu:8000"
    assert guarded(raising(refused(404, body, url=server + path))) == ExitCode.BAD_INPUT
    assert capsys.readouterr().err == f"nightmill: {said.replace('{}', server)}\n"


@pytest.mark.parametrize(
    ("status", "message", "said"),
    [
        (429, "Rate limit reached. Please try again in 3s.", "Rate limit reached. Please try again in 3s."),
        (503, "The store is away.", "The store is away; try again"),
        (401, "Wrong key. You can make one with `nightmill keys create`.",
         "Wrong key. You can make one with `nightmill keys create`; then set OPENAI_API_KEY to it"),
        (401, "No key. Set OPENAI_API_KEY.", "No key. Set OPENAI_API_KEY."),
        (404, "No batch found with id 'b'.", "No batch found with id 'b'."),
    ],
)  # fmt: skip
def test_what_the_server_has_said_is_not_said_again(capsys, status, message, said):
    guarded(raising(refused(status, {"error": {"message": message}})))
    assert capsys.readouterr().err == f"nightmill: {said}\n"


def test_a_gateway_without_its_server_is_tried_again(capsys):
    assert guarded(raising(refused(502, "<html>"))) == ExitCode.TRY_AGAIN
    assert capsys.readouterr().err == "nightmill: http://127.0.0.1:9 answered 502; try again\n"


def test_a_base_url_needs_no_scheme(nightmill, free_port):
    ran = nightmill("list", "--base-url", f"localhost:{free_port}/v1")
    assert f"no server at http://localhost:{free_port}" in ran.err


def test_a_host_that_does_not_exist_is_named(nightmill):
    ran = nightmill("list", "--base-url", "http://there-is.invalid/v1")
    assert ran.err == "nightmill: there is no host named there-is.invalid; check OPENAI_BASE_URL\n"


def test_tls_towards_a_plain_server_is_named(nightmill, plain_server):
    ran = nightmill("list", "--base-url", f"https://127.0.0.1:{plain_server}/v1")
    assert ran.code == ExitCode.TRY_AGAIN
    assert "does not answer with TLS; if it is a plain server, use http://" in ran.err


@pytest.fixture
def plain_server():
    """The port of a server that answers plain HTTP to whatever it is sent."""
    import socketserver
    import threading

    class Plain(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1_024)
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Plain) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
