"""`sharp chat` in a real terminal (a pseudo terminal): the line editor, Ctrl-C during an answer and at the prompt, Ctrl-D."""
# Quick: `cargo xtask test` runs it.

import os
import signal
import time

import _server
from support import scratch

if not hasattr(os, "fork"):
    scratch.leave_out("this system has no pseudo terminals")

from support.terminal import Terminal  # noqa: E402


def main():
    folder = _server.scratch()
    # Slow enough that an answer can be stopped; greedy, so that it does not end by chance.
    shape = "--hidden 512 --intermediate 1536 --layers 12 --heads 8 --kv-heads 4".split()
    original, _ = _server.small_model(folder, *shape)
    history = folder / "history"
    command = [_server.SHARP, "chat", "--model", original, "--max-tokens", "1900", "--temperature", "0", "--history", history]
    terminal = Terminal(*command)
    try:
        terminal.wait_for("> ")
        # Ctrl-C on a line drops the line, not the program.
        terminal.type("unfinished\x03")
        terminal.wait_for("> ")
        terminal.type("/help\r")
        terminal.wait_for("Ctrl-C stops an answer")
        terminal.wait_for("> ")
        # Ctrl-C stops an answer; then there is a prompt again.
        terminal.type("Hello\r")
        terminal.wait_for("Hello")
        terminal.wait_for("\r\n")
        time.sleep(0.1)
        terminal.type("\x03")
        terminal.wait_for("[stopped]")
        terminal.wait_for("> ")
        # The line before, by arrow key.
        terminal.type("\x1b[A")
        terminal.wait_for("Hello")
        terminal.type("\x15\x04")
        assert terminal.end() == 0
    except BaseException:
        os.kill(terminal.process, signal.SIGKILL)
        raise
    assert "Hello" in history.read_text()
    print("terminal: line editor, Ctrl-C at the prompt and during an answer, history, Ctrl-D")


main()
