# SPDX-License-Identifier: Apache-2.0
"""The command line as a user runs it: in a process of its own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import warnings

PROGRAM = [sys.executable, "-m", "weightpack"]


def run(*arguments, cwd, env=None, preexec_fn=None, stdin=None, binary=False):
    """Run the program; `stdin` is the bytes of standard input (none: an empty one), `binary` gives what it printed as bytes."""
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)], cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, input=stdin or b"",
        preexec_fn=preexec_fn, timeout=300,
    )  # fmt: skip
    if binary:
        return done
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8"))


def call(*arguments, cwd, stdin=b"", binary=False):
    """Call the program in this process, which is faster: for calls that do little but fail."""
    from weightpack.cli import main

    streams = [io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", write_through=True) for data in (stdin, b"", b"")]
    shown, old_stdin = warnings.showwarning, sys.stdin
    sys.stdin = streams[0]
    try:
        with contextlib.redirect_stdout(streams[1]), contextlib.redirect_stderr(streams[2]), contextlib.chdir(cwd):
            main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = int(end.code)
    finally:
        warnings.showwarning, sys.stdin = shown, old_stdin
    written = [stream.buffer.getvalue() for stream in streams[1:]]
    return subprocess.CompletedProcess(arguments, code, *(written if binary else (data.decode() for data in written)))


def refused(result, code, *words):
    """Assert the exit code, these words on stderr, and no traceback."""
    stderr = result.stderr if isinstance(result.stderr, str) else result.stderr.decode()
    assert result.returncode == code, stderr
    assert "Traceback" not in stderr
    for word in words:
        assert str(word) in stderr, stderr
    return True
