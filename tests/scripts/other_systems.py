"""A command under the rules of other systems, as far as Linux can pretend them; see test_platforms.py.

What only POSIX has is gone. A file that this process has open or mapped cannot be replaced, renamed or
removed, as on Windows, and new names must be ones that Windows takes. Worker processes are spawned.

python other_systems.py FOLDER SCRIPT ARGUMENT ...: the rules hold in FOLDER. Prints what was refused, and
one value of each of the images FOLDER/images/*.png, which a worker process decodes.
"""

import importlib
import multiprocessing
import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path

RESERVED = re.compile(r'(con|prn|aux|nul|com\d|lpt\d)( *\..*)?|.*[<>:"|?*\\\x00-\x1f].*|.*[ .]', re.I | re.S)


def in_use():
    """The files that this process has open or mapped."""
    files = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            files.add(os.readlink(descriptor))
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    return files | {"/" + line.partition("/")[2] for line in lines}


def refuse_what_windows_refuses(root):
    """From now on, below a folder. Not to be undone: for a process of its own."""

    def whole(path, folder=-1):
        start = os.readlink(f"/proc/self/fd/{folder}") if folder not in (-1, None) else ""
        return os.path.abspath(os.path.join(start, os.fsdecode(path)))

    def require_free(path):
        if path.startswith(f"{root}/") and any(f"{file}/".startswith(f"{path}/") for file in in_use()):
            print("in use:", path)
            raise PermissionError(13, "in use, as Windows would say", path)

    def require_name(path):
        if path.startswith(f"{root}/") and any(map(RESERVED.fullmatch, path[len(root) + 1 :].split("/"))):
            print("no name for Windows:", path)
            raise OSError(22, "no name for Windows", path)

    def check(event, arguments):
        if event == "os.rename":
            source, target = whole(arguments[0], arguments[2]), whole(arguments[1], arguments[3])
            require_free(source)
            require_free(target)
            require_name(target)
        elif event in ("os.remove", "os.rmdir"):
            require_free(whole(*arguments[:2]))
        elif event == "os.mkdir":
            require_name(whole(arguments[0], arguments[2]))
        elif event == "open" and isinstance(arguments[0], str) and arguments[2] & os.O_CREAT:
            require_name(whole(arguments[0]))
            if arguments[2] & os.O_TRUNC:
                require_free(whole(arguments[0]))

    sys.addaudithook(check)


def forget_posix():
    import torch.multiprocessing  # noqa: F401  # they know the systems that they are made for

    for name in ("fcntl", "resource", "pwd", "grp"):
        sys.modules[name] = None
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL"):
        delattr(signal, name)
    for name in ("getuid", "geteuid", "sched_getaffinity", "sysconf_names"):
        delattr(os, name)
    multiprocessing.set_start_method("spawn")


if __name__ == "__main__":
    _, folder, script, *argv = sys.argv
    forget_posix()
    refuse_what_windows_refuses(os.path.realpath(folder))
    command = importlib.import_module(script)
    importlib.import_module("utils.run.interrupt").listen()
    command.main(argv)
    data = importlib.import_module("data")
    files = sorted(Path(folder, "images").glob("*.png"))
    dataset = importlib.import_module("data.folder.image_files").FolderImages(files, None, None, 8)
    loader = data.Loader(dataset, data.PlainView(lambda images: images), 2, train=False, num_workers=1)
    print([batch[:, 0, 0, 0].tolist() for batch in loader])
