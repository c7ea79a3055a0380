"""Curves: what the line and its band are, that algorithms can be told apart, and that figures come out."""

from itertools import combinations

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from trinity_rec.plot.draw import (
    COLOURS,
    STYLES,
    Curve,
    band,
    draw_curves,
    figure_grid,
    headline,
    running_mean,
    save,
    shared_legend,
    styles_for,
)
from trinity_rec.presets import PRESETS

NAN = np.nan
# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def oklab(colour: str, sight: str) -> np.ndarray:
    """Ottosson's perceptual colour space, times 100, after a simulation of colour-blindness."""
    srgb = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return 100 * np.array(to_lab) @ np.cbrt(np.array(to_cones) @ np.clip(SIGHT[sight] @ linear, 0, 1))


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_stay_apart(sight):
    for one, other in combinations(COLOURS, 2):
        # Okabe and Ito's eight colours come as near as 7.6 to each other by this measure.
        assert np.linalg.norm(oklab(one, sight) - oklab(other, sight)) > 11, (one, other)


def test_every_preset_has_a_style_of_its_own():
    """What the paper compares has it in every figure, other presets within one."""
    assert {name for name in PRESETS if PRESETS[name].family != "OFF"} <= STYLES.keys()
    assert len(set(styles_for(PRESETS).values())) == len(PRESETS)
    assert len(set(STYLES.values())) == len(STYLES)


def test_an_algorithm_looks_the_same_in_every_figure():
    few, many = styles_for(["mine", "rec_grpo"]), styles_for(["red_drop", "other", "rec_grpo", "mine"])
    assert few["rec_grpo"] == many["rec_grpo"] == STYLES["rec_grpo"]
    assert len(set(many.values())) == 4
    assert len(set(styles_for(f"run {i}" for i in range(20)).values())) == 20


def test_the_band_is_students_interval_from_three_seeds_on():
    mean, low, high = band(np.array([[1.0, 1, NAN, NAN], [2, 3, NAN, 5], [6, NAN, NAN, NAN]]))
    np.testing.assert_allclose(mean, [3, 2, NAN, 5])
    # scipy.stats.t.interval(0.95, 2, 3, scipy.stats.sem([1, 2, 6]))
    np.testing.assert_allclose(low, [-3.572500, 1, NAN, 5], rtol=1e-3)
    np.testing.assert_allclose(high, [9.572500, 3, NAN, 5], rtol=1e-3)


def test_the_running_mean_looks_back_only():
    np.testing.assert_allclose(running_mean(np.array([1.0, 3, 5, 7]), 2), [1, 2, 4, 6])
    np.testing.assert_allclose(running_mean(np.array([[NAN, 2, NAN, 4]]), 2), [[NAN, 2, NAN, 4]])
    assert running_mean(np.array([])).size == 0


def test_the_line_is_the_mean_over_seeds():
    _, grid = figure_grid(1, 1)
    draw_curves(grid[0, 0], [Curve("x", np.arange(3), np.array([[0.0, 1, 2], [2, 3, 4]]))])
    (line,) = grid[0, 0].get_lines()
    np.testing.assert_allclose(line.get_ydata(), [1, 2, 3])
    assert grid[0, 0].get_xlim() == (0, 2)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"curve 'x': steps \(3,\) and values \(3,\)"):
        Curve("x", np.arange(3), np.arange(3.0))


def test_a_grid_has_one_legend_and_is_drawn(tmp_path):
    figure, grid = figure_grid(2, 3)
    for axes in grid.flat:
        draw_curves(
            axes,
            [
                Curve(name, np.arange(5), np.random.default_rng(0).random((4, 5)))
                for name in ("rec_grpo", "rec_oneside_is")
            ],
            title="title",
            ylabel="y",
            xlabel="training step",
        )
    shared_legend(figure)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["rec_grpo", "rec_oneside_is"]
    image = imread(save(figure, tmp_path / "new" / "grid.png"))
    assert image.shape[1] > image.shape[0] > 500
    assert image[..., :3].std() > 0.02  # not blank


def test_a_long_legend_leaves_the_panel_its_height(tmp_path):
    heights = []
    for number in (1, 20):
        figure, grid = figure_grid(1, 1)
        curves = [Curve(f"an algorithm, {each}", np.arange(3), np.ones((3, 3))) for each in range(number)]
        draw_curves(grid[0, 0], curves)
        shared_legend(figure)
        save(figure, tmp_path / "long.png")
        heights.append(grid[0, 0].get_window_extent().height)
    assert heights[1] > 0.9 * heights[0]


def test_a_headline_fits_a_narrow_figure_and_leaves_the_panels_alone(tmp_path):
    figure, grid = figure_grid(rows=1, columns=1)
    headline(figure, "Claim C3: without clipping, REINFORCE collapses off-policy (inconclusive)")
    save(figure, tmp_path / "narrow.png")
    (text,) = figure.texts
    above = text.get_window_extent()
    assert above.x0 >= 0 and above.x1 <= figure.bbox.width
    assert grid[0, 0].get_tightbbox().y1 <= above.y0 < above.y1 <= figure.bbox.height


def test_nothing_to_draw_is_drawn_as_nothing(tmp_path):
    figure, grid = figure_grid(1, 1)
    draw_curves(grid[0, 0], [Curve("x", np.array([]), np.empty((2, 0))), Curve("y", np.array([3]), np.array([[NAN]]))])
    save(figure, tmp_path / "empty.png")
