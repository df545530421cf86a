"""The errors a user can cause. The command line prints each as one line and exits with status 2."""

from collections.abc import Iterable
from difflib import get_close_matches
from reprlib import Repr

_LONGEST = 80


class UserError(Exception):
    """What the user gave cannot be used; the message is one clear line that names the file or key."""


class VolumeError(UserError):
    """An image file or a volume is unusable: missing, truncated, of the wrong shape, with a broken affine."""


class DataError(UserError):
    """A data set is unusable: layout, labels that its description does not name, too few cases."""


class ConfigError(UserError):
    """A configuration is unusable: an unknown key, a value out of range."""


class WeightsError(UserError):
    """Model weights are unusable: not found, or of another model; the message names the keys."""


class TrainingError(UserError):
    """Training cannot go on: its numbers are not finite any more."""


class ProcessError(UserError):
    """A process in another system's environment has failed; the message has its last words."""


class Cancelled(UserError):  # noqa: N818
    """The caller cancelled the work before it was done."""


class _Short(Repr):
    """Cuts a value before it is formatted, since it may be as long as a file, or a number too long to format."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, _LONGEST, _LONGEST

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 128 else "a number of more than 38 digits"


def shown(value: object) -> str:
    """A value as a message has it: its `repr` in one line, cut to a length that can be read."""
    text = _Short().repr(value)
    return text if len(text) <= 2 * _LONGEST else f"{text[:_LONGEST]}..."


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that does not exist: the nearest one that does, or all of them."""
    names = list(known)
    near = get_close_matches(name[:_LONGEST], names, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
