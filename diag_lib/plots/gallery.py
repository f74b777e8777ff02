"""What do teacher and student see in one picture, patch by patch?"""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from diag_lib.plots import style
from diag_lib.probes.gallery import Gallery

TITLES = {"teacher": "teacher", "student": "student", "difference": "teacher - student"}


@style.styled
def card(gallery: Gallery, image: int, cell: tuple[int, int]) -> Figure:
    """The picture beside its maps, each on its own scale around 0 that is the same for all images.

    `cell` is row and column (from 0) of the marked patch. Figures of one gallery are all of one size.
    """
    maps = gallery.maps(image)
    figure, (axes, bars) = style.new_figure(
        2, 1 + len(maps), width=2.95 * (1 + len(maps)), height=3.7, height_ratios=[18, 1]
    )
    style.fix_layout(figure, left=0.012, right=0.988, top=0.84, bottom=0.09, wspace=0.09, hspace=0.06)
    bars[0].set_axis_off()
    pixels = gallery.pixels(image)
    height, width = pixels.shape[:2]
    label = int(gallery.labels[image])
    axes[0].imshow(pixels, aspect="auto")
    axes[0].set_title(style.CLASS_NAMES[label], color=style.CLASS_COLOURS[label], loc="center")
    _mark(axes[0], cell, (height / gallery.grid[0], width / gallery.grid[1]))
    for ax, below, (name, values) in zip(axes[1:], bars[1:], maps.items(), strict=True):
        limit = gallery.limits[name]
        shown = ax.imshow(values, cmap=style.DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
        ax.set_title(TITLES[name], color=style.MODEL_COLOURS.get(name, style.INK), loc="center")
        _mark(ax, cell, (1.0, 1.0))
        bar = figure.colorbar(shown, cax=below, orientation="horizontal", extend="both")
        bar.set_ticks([-limit, 0, limit], labels=[f"{-limit:.2g}", "0", f"{limit:.2g}"])
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_box_aspect(height / width)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    style.finding_title(figure, "Patch logits: blue towards real, orange towards fake")
    return figure


def _mark(ax: Axes, cell: tuple[int, int], step: tuple[float, float]) -> None:
    """A frame around the chosen patch, dark on light ground and light on dark."""
    row, column = cell
    for colour, thick in (("white", 3.5), ("black", 1.5)):
        ax.add_patch(
            Rectangle(
                (column * step[1] - 0.5, row * step[0] - 0.5),
                step[1],
                step[0],
                fill=False,
                edgecolor=colour,
                linewidth=thick,
            )
        )
