"""The command line, in this process."""

import pytest

from foveate.cli import main


@pytest.fixture
def run(capsys):
    """(arguments) -> exit code, stdout, stderr."""

    def command(*arguments):
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return command
