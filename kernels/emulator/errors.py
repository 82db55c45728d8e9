"""What the emulator raises."""


class EmulationError(RuntimeError):
    """A kernel did what it must not do; the message says what, where and which threads."""


class CompileError(RuntimeError):
    """A kernel file is not valid C++; the message is the compiler's."""
