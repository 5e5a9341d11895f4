"""Closed SMILES: molecules, and texts with one fault each."""

import pytest

from diffusion_jax.evaluation.smiles import closed


@pytest.mark.parametrize(
    "text", ["C", "CC(C)(C)c1ccc2occ(CC(=O)N)c2c1", "C[C@@H]1CC[13CH2]C1", "C%12CCCC%12", "[NH3+]CC(=O)[O-]"]
)
def test_molecules_are_closed(text):
    assert closed(text)


@pytest.mark.parametrize(
    "text", ["", "C(C", "CC)C(", "c1ccccc", "c1ccccc2", "C[NH", "C]N[", "C()C", "(C)C", "[]C", "1CC1"]
)
def test_faults_are_seen(text):
    assert not closed(text)
