"""The scaling ladder: the fit finds a law that is known, and the script trains and prints."""

import sys

import numpy as np
import pytest
from support.paths import REPOSITORY


@pytest.fixture(scope="module")
def scaling():
    """The script as a module, which imports the one beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "benchmarks"))
        import scaling
    return scaling


@pytest.fixture
def law(scaling):
    """With the numbers of Kaplan et al., table 2."""
    return scaling.Law(0.076, 0.103, np.log(6.4e13), np.log(1.8e13))


def grid(law, noise=0.0):
    """Parameters, tokens and losses of a grid of 4 x 3."""
    n, d = (x.ravel().astype(float) for x in np.meshgrid([3e5, 6e5, 1e6, 2e6], [5e5, 1.5e6, 4e6]))
    return n, d, law.loss(n, d) * np.exp(noise * np.random.default_rng(1).standard_normal(len(n)))


def test_the_fit_finds_the_law_that_made_the_losses(scaling, law):
    n, d, losses = grid(law)
    found = scaling.fit(n, d, losses)
    np.testing.assert_allclose(found.loss(n, d), losses, rtol=1e-6)
    np.testing.assert_allclose(
        [found.alpha_N, found.alpha_D], [law.alpha_N, law.alpha_D], rtol=0.02
    )


def test_no_other_size_of_the_same_operations_has_a_lower_loss(law):
    for operations in (1e13, 1e16):
        best = law.best_size(operations)
        sizes = best * np.geomspace(0.1, 10, 201)
        losses = law.loss(sizes, operations / 6 / sizes)
        assert sizes[losses.argmin()] == pytest.approx(best, rel=0.02)


@pytest.mark.gate
def test_the_intervals_hold_the_law_that_made_noisy_losses(scaling, law, monkeypatch):
    monkeypatch.setattr(scaling, "N_RESAMPLES", 40)
    n, d, losses = grid(law, noise=0.002)
    points = zip(n, d, losses, strict=True)
    runs = [scaling.Run(0, int(t), None, int(p), float(loss)) for p, t, loss in points]
    _, resampled = scaling.fit_with_resamples(runs)
    for name in ("alpha_N", "alpha_D"):
        low, high = np.percentile([getattr(other, name) for other in resampled], scaling.INTERVAL)
        assert low < getattr(law, name) < high


def test_the_script_prints_the_law_the_sizes_and_the_best_rates(
    scaling, law, monkeypatch, tmp_path, capsys
):
    def train(config, width, tokens, rate):
        n = 12 * scaling.N_LAYER * width**2
        loss = law.loss(n, tokens) + (0 if rate is None else abs(np.log(rate / 1e-2)))
        return scaling.Run(width, tokens, rate, n, float(loss))

    monkeypatch.setattr(scaling, "train", train)
    monkeypatch.setattr(scaling, "N_RESAMPLES", 10)
    arguments = ["--data", "data", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["scaling.py", *arguments])
    scaling.main()
    printed = capsys.readouterr().out
    assert "| alpha_N | 0.076 (" in printed and "best N (90 % interval)" in printed
    rows = [line for line in printed.splitlines() if "**" in line]
    header = next(line for line in printed.splitlines() if "0.01" in line and "width" in line)
    column = [cell.strip() for cell in header.split("|")].index("0.01")
    assert len(rows) == 3 and all("**" in row.split("|")[column] for row in rows)
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--widths", "64", "48"], "expected multiples of 32 channels, found 48"),
        (["--rate_widths", "0"], "expected multiples of 32 channels, found 0"),
        (["--tokens", "4096"], "expected more than 4 runs"),
        (["--rate_tokens", "0"], "rate_tokens"),
    ],
)
def test_a_ladder_that_cannot_be_fitted_is_refused_before_it_trains(
    arguments, problem, scaling, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--data", "d", "--output_dir", "o", *arguments])
    with pytest.raises(SystemExit):
        scaling.main()
    assert problem in capsys.readouterr().err


@pytest.mark.gate
def test_a_run_of_the_ladder_counts_the_parameters_of_its_matrix_products(
    scaling, small_data, tmp_path
):
    config = scaling.ScalingConfig(data=str(small_data), output_dir=str(tmp_path))
    run = scaling.train(config, 32, 4096, 1e-2)
    assert 0 < run.loss < 20
    from modeling_gpt2scratch import GPT2ScratchForCausalLM

    model = GPT2ScratchForCausalLM.from_pretrained(tmp_path / "32_4096_0.01")
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "wpe" not in name]
    assert run.n_parameters == sum(p.numel() for p in matrices)
    assert scaling.train(config, 32, 4096, 1e-2) == run  # finished: not made again
