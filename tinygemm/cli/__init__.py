"""`tinygemm ...`: measure, record, profile and plot; everything heavy is imported when it is needed."""

from __future__ import annotations

import sys

import click

from tinygemm.cli import advise, convert, equivalent, measure, plot, predict, profile, quality, step
from tinygemm.files import in_words, show_everything

SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "show_default": True,
    # the original study's spelling works, too: --shape_list is --shape-list
    "token_normalize_func": lambda name: name.replace("_", "-"),
}
EXTRAS = dict.fromkeys(("matplotlib", "seaborn", "scipy"), "report")
EXTRAS |= dict.fromkeys(("safetensors", "transformers", "accelerate"), "models")


@click.group(context_settings=SETTINGS)
def commands():
    """Measure decode GEMMs with packed INT4 weights against FP16, and draw what was measured."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command; what the user can mend becomes one line on stderr and exit code 1."""
    show_everything()
    try:
        commands(arguments, prog_name="tinygemm")
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(error.name, "kernel")
        _fail(f"the package {error.name} is not installed (pip install -e '.[{extra}]')")
    except (ValueError, RuntimeError, OSError) as error:
        _fail(in_words(error))


def _fail(message: str) -> None:
    click.echo(f"Error: {message}", err=True)
    sys.exit(1)


for command in (
    *(measure.bench, measure.breakdown, measure.record, measure.tune, step.step),
    *(profile.profile, profile.counters, profile.static_cost),
    *(plot.plot, advise.advise, predict.predict, equivalent.equivalent, quality.quality, convert.convert),
):
    commands.add_command(command)
