"""`sharp chat` in a real terminal (a pseudo terminal): the line editor, Ctrl-C during an answer and at the prompt, Ctrl-D."""

import os
import pty
import select
import signal
import sys
import time

import _server


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, *command):
        self.process, self.file = pty.fork()
        if self.process == 0:
            os.environ["TERM"] = "xterm"
            os.execv(command[0], [str(part) for part in command])
        self.seen = b""

    def type(self, text):
        os.write(self.file, text.encode())

    def wait_for(self, text, seconds=60):
        """Reads until `text` has come after what was waited for before."""
        end = time.monotonic() + seconds
        while text.encode() not in self.seen:
            if not select.select([self.file], [], [], max(0, end - time.monotonic()))[0]:
                raise AssertionError(f"no {text!r} in {self.seen!r}")
            try:
                self.seen += os.read(self.file, 65536)
            except OSError:
                raise AssertionError(f"ended without {text!r}: {self.seen!r}") from None
        before, self.seen = self.seen.split(text.encode(), 1)
        return before.decode(errors="replace")

    def end(self):
        """The exit code."""
        while True:
            try:
                if not os.read(self.file, 65536):
                    break
            except OSError:
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


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


if not hasattr(os, "fork"):
    sys.exit(_server.LEFT_OUT)
main()
