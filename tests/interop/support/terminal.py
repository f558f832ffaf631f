"""Programs in a pseudo terminal, for scripts that type and read as a person does."""

import os
import pty
import select
import time


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
