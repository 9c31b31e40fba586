"""What the tests of people's mistakes share: each ends in one line that names it."""

import io
import zipfile

import numpy as np
import pytest

from errors import UserError


def refused(words, function, *args):
    """Call a function that must raise a UserError whose one line holds all words; `a|b` is either."""
    with pytest.raises(UserError) as error:
        function(*args)
    line = str(error.value)
    assert "\n" not in line
    assert_holds(line, words)


def assert_holds(line, words):
    for word in words:
        assert any(part in line for part in word.split("|")), line


def npy(array):
    """The bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zipped(name, content):
    """The bytes of a zip file that holds one file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()
