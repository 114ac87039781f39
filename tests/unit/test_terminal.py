"""What a person sees of a program of ours: its own lines, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "distqat"


def run(text: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(text), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


NOISE = """
    import logging, os, sys, warnings
    from distqat.process import guarded, set_up_logging
    from distqat.process.role_logs import warn_at_terminal
    from distqat.terminal import complain, keep_clean, kept_log, log_to

    def noise():
        warnings.warn("torch.jit.script is deprecated")
        os.write(2, b"a line of C++\\n")
        logging.getLogger("torch._subclasses.fake_tensor").warning("FakeTensor cache")
        print("a library prints", file=sys.stderr)

    warnings.simplefilter("always")
    keep_clean()
    noise()
"""
LINES = ("torch.jit.script is deprecated", "a line of C++", "FakeTensor cache", "a library prints")


def test_libraries_write_to_the_log_and_we_to_the_terminal(tmp_path: Path) -> None:
    log = tmp_path / "start_servers.log"
    done = run(
        NOISE
        + """
    from pathlib import Path
    set_up_logging("launcher")
    log_to(Path(sys.argv[1]))
    noise()
    logging.getLogger("distqat.launch").warning("a warning of ours")
    complain("a line of ours")
    """,
        str(log),
    )
    shown = done.stderr.splitlines()
    assert [line.split("] ")[-1] for line in shown] == ["a warning of ours", "a line of ours"]
    written = log.read_text()
    assert [written.count(line) for line in LINES] == [2, 2, 2, 2]  # before it was named, and after
    assert "a warning of ours" in written


def test_a_command_that_succeeds_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = run(
        NOISE
        + """
    warn_at_terminal()
    logging.getLogger("distqat.data").warning("1 picture left out")
    """
    )
    assert (done.returncode, done.stderr) == (0, "1 picture left out\n")
    assert not list(tmp_path.iterdir())


def test_an_error_that_nobody_foresaw_is_one_sentence_and_names_the_file_of_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = run(
        NOISE
        + """
    def fail():
        raise KeyError("fc.weight")
    warn_at_terminal()
    sys.exit(guarded("export", fail))
    """
    )
    assert done.returncode == 1
    place, sentence = done.stderr.splitlines()
    assert sentence.startswith("distqat export: KeyError: 'fc.weight'")
    log = Path(place.removeprefix("see "))
    assert log.parent == tmp_path
    written = log.read_text()
    assert "Traceback" in written
    assert all(line in written for line in LINES)


def test_a_program_without_standard_error_runs() -> None:
    program = "from distqat.terminal import begin; begin('x'); print(7)"
    command = ["bash", "-c", f'{sys.executable} -c "{program}" 2>&-']
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "7\n")


def test_a_program_that_starts_itself_again_for_its_locale_keeps_the_terminal(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("from distqat.terminal import begin, complain; begin('x'); complain('a line of ours')")
    environment = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "a line of ours\n")


def test_a_forked_process_has_its_own_standard_error() -> None:
    done = run(
        """
    import os, sys
    from distqat.terminal import complain, keep_clean, keeps_clean
    keep_clean()
    if (pid := os.fork()) == 0:
        assert not keeps_clean()
        complain("of the child: into the log")
        os._exit(0)
    os.waitpid(pid, 0)
    complain("of the parent")
    """
    )
    assert done.stderr == "of the parent\n"


INTERRUPTED = """
    import os, signal, sys, time
    from distqat.terminal import begin, undone
    begin("export")
    {before}
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)
"""


def test_an_interrupt_is_one_line_and_130() -> None:
    done = run(INTERRUPTED.format(before="pass"))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "distqat export: interrupted\n")


def test_an_interrupt_undoes_what_would_be_left_behind(tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.touch()
    done = run(
        INTERRUPTED.format(before=f"work = undone(lambda: os.unlink({str(left)!r})); work.__enter__()")
    )
    assert done.returncode == 130
    assert not left.exists()


def test_what_a_parent_would_undo_is_none_of_its_childrens_business(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.touch()
    done = run(
        f"""
    import os, signal, time
    from distqat.terminal import begin, undone
    begin("export")
    with undone(lambda: os.unlink({str(kept)!r})):
        if (pid := os.fork()) == 0:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(20)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    )
    assert (done.returncode, done.stdout) == (0, "130\n")
    assert kept.exists()


def test_programs_speak_through_complain() -> None:
    """`sys.stderr` of a launcher or command is its log: what is written there nobody sees."""
    speak = re.compile(r"sys\.stderr\.write|file=sys\.stderr|print_exc")
    files = [*SOURCE.glob("launch/*.py"), *SOURCE.glob("config/*.py")]
    assert not [
        f"{path.name}: {line}"
        for path in files
        for line in path.read_text().splitlines()
        if speak.search(line)
    ]


def test_importing_changes_no_handler() -> None:
    done = run(
        """
    import signal
    import distqat.terminal, distqat.process.forked_child, distqat.launch.command_frame
    print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """
    )
    assert done.stdout == "True\n"


def test_the_first_import_of_a_program_is_a_short_one() -> None:
    slow = {
        "typing",
        "dataclasses",
        "tempfile",
        "logging",
        "pathlib",
        "contextlib",
        "asyncio",
        "distqat.failures",
    }
    program = (
        f"import sys; sys.path[:0] = [{str(SOURCE.parent)!r}]; import distqat.terminal; print(*sys.modules)"
    )
    command = [sys.executable, "-I", "-S", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert not slow & set(done.stdout.split())
