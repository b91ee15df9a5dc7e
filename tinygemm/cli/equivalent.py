"""`tinygemm equivalent`: whether today's kernels are those of a recorded run; needs torch and triton, and no GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
def equivalent(run):
    """Prove that the kernels of this checkout compute what those of RUN did, and note it in data/equivalent.csv.

    RUN is the folder of a recorded run. Its commit is taken from the history. Equal source is a proof; where the source
    differs, every row of the GPU's table is compiled from both and the machine code is compared.
    """
    from tinygemm.harness import equivalence
    from tinygemm.runs import load_run

    recorded = load_run(run)
    digest = recorded.provenance.get("kernel_sha256")
    if digest is None:
        raise ValueError(f"{run}: provenance.json has no kernel_sha256; runs of schema 1 cannot be compared")
    n_cases = equivalence.same_choices(recorded)
    evidence = equivalence.prove(recorded.provenance["commit"], digest, recorded.gpu["key"])
    evidence = replace(evidence, proof=f"{evidence.proof}; the same configs chosen for {n_cases} recorded cases")
    added = equivalence.record(evidence)
    click.echo(f"{evidence.proof}; {'noted in data/equivalent.csv' if added else 'already known'}")
