"""Python on Linux as on students' machines: ELSEWHERE is the locale's encoding, CRLF, no fork or /proc, files held."""

import builtins
import io
import os
import pathlib
import sys
import time

import psutil  # noqa: F401, on Linux it needs `resource`

ENCODING = "utf-8" if sys.flags.utf8_mode else os.environ.get("ELSEWHERE")
first_tried: dict[str, float] = {}
real_open, real_replace, real_exists = io.open, os.replace, pathlib.Path.exists


def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *more):
    if str(file).startswith("/proc") and not sys._getframe(1).f_globals["__name__"].startswith("psutil"):
        raise FileNotFoundError(2, "No such file or directory", file)  # psutil has other ways elsewhere
    if "b" not in mode:
        encoding = ENCODING if encoding in (None, "locale") else encoding
        newline = "\r\n" if newline is None and mode[0] in "wax" and "+" not in mode else newline
    return real_open(file, mode, buffering, encoding, errors, newline, *more)


def replaced(source, target, **options):
    held_until = first_tried.setdefault(os.fspath(target), time.monotonic()) + 0.3
    if sys._getframe(1).f_globals["__name__"].startswith("lib.") and time.monotonic() < held_until:
        raise PermissionError(13, "The process cannot access the file because it is being used by another process")
    return real_replace(source, target, **options)


def refused(*_, **__):
    raise OSError(22, "A required privilege is not held by the client")


if os.environ.get("ELSEWHERE"):
    builtins.open = io.open = staticmethod(opened)  # a class that keeps it makes no method of it
    os.replace, os.symlink, pathlib.Path.symlink_to = replaced, refused, refused
    pathlib.Path.exists = lambda self, **options: not str(self).startswith("/proc") and real_exists(self, **options)
    del os.fork, os.waitid
    sys.modules["resource"] = None  # an import of it fails
