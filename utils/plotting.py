"""Figures that read well on a light and on a dark page, and carry a description."""

import base64
import io
from html import escape

import ipywidgets as widgets
import matplotlib
import numpy as np
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Patch
from matplotlib.text import Text
from PIL import Image

# No paper, and ink that has a contrast of 4 on a white page and on a dark one.
BACKGROUND, INK, FAINT = "none", "#757b83", "#9ba1a9"
WRONG = (214, 39, 116)  # errors; no palette uses this magenta
COLOURS = ("#3f76bd", "#c4741d", "#2f8f6b", "#c0479a", "#7a6bb8", "#808080")

STYLE = {
    "figure.facecolor": BACKGROUND,
    "savefig.facecolor": BACKGROUND,
    "axes.facecolor": BACKGROUND,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "font.size": 10.0,
    "grid.color": FAINT,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def figure(rows=1, columns=1, width=8.0, height=3.0, **options):
    """A figure in the style of the book: (Figure, axes as plt.subplots gives them).

    width and height are inches, 8 fill a page; options go to Figure.subplots.
    """
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(width, height), layout="constrained")
        fig.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # inches
        return fig, fig.subplots(rows, columns, **options)


def show(picture, alt, width=None):
    """Display a figure, or an image (H, W) or (H, W, 3) uint8, with a description.

    alt says what the picture shows to those who cannot see it. width: pixels on the
    page; by default the figure's size, an image's own.
    """
    html = _img(picture, alt, width)
    display({"text/html": html, "text/plain": alt}, raw=True)


def reserve(promise):
    """A place on the page for a picture that a later cell makes.

    promise: what stands there until then. Returns a function of a picture and its
    description, as `show` takes them, that fills the place.
    """
    place = display(Markdown(f"*{promise}*"), display_id=True)

    def fill(picture, alt, width=None):
        html = _img(picture, alt, width)
        place.update({"text/html": html, "text/plain": alt}, raw=True)

    return fill


def overlay(image, labels, palette, alpha=0.5):
    """The image under its labels in colour, as an RGB array (H, W, 3) uint8.

    image: (H, W), (1, H, W) or (3, H, W) uint8; labels: (H, W). Labels without a
    colour in the palette, such as the one to ignore, leave the image as it is.
    """
    rgb, labels = _rgb(image), np.asarray(labels)
    if labels.shape != rgb.shape[:2]:
        raise ValueError(f"image {rgb.shape[:2]} and labels {labels.shape} differ")
    painted = labels < len(palette)
    colours = np.asarray(palette, dtype=float)[labels[painted].astype(int)]
    result = rgb.astype(float)
    result[painted] += alpha * (colours - result[painted])
    return result.round().astype(np.uint8)


def predictions(
    images, truths, predicted, classes, palette, ignore=None, titles=None, width=8.0
):
    """Rows of image, truth, prediction and error, with the colours of the classes.

    images: (N, C, H, W) uint8; truths, predicted: (N, H, W). The last column paints
    the wrong pixels and gives their share; ignored ones are grey and do not count.
    """
    truths, predicted = _array(truths), _array(predicted)
    rows, (tall, wide) = len(truths), truths.shape[1:]
    height = 0.75 + rows * ((width / 4 - 0.25) * tall / wide + 0.35)
    fig, axes = figure(rows, 4, width, height, squeeze=False)
    for row, image, truth, guess in zip(axes, _array(images), truths, predicted):
        counted = truth != ignore
        wrong = (truth != guess) & counted
        colours = np.where(counted, guess, len(palette))
        row[0].imshow(_rgb(image))
        row[1].imshow(overlay(image, truth, palette, 0.6))
        row[2].imshow(overlay(image, colours, palette, 0.6))
        row[3].imshow(_errors(image, wrong, counted))
        share = wrong.sum() / max(counted.sum(), 1)
        row[3].set_xlabel(f"{share:.1%} wrong".replace("%", " %"))
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, title in zip(axes[0], ("image", "truth", "prediction", "error")):
        axis.set_title(title)
    for axis, title in zip(axes[:, 0], titles or ()):
        axis.set_ylabel(title)
    colours = np.asarray(palette) / 255
    patches = [Patch(facecolor=c, label=n) for n, c in zip(classes, colours)]
    with matplotlib.rc_context(STYLE):
        columns = min(len(patches), 6)
        fig.legend(handles=patches, loc="outside lower center", ncols=columns)
    return fig


def curves(histories, score="score", width=8.0, height=3.0):
    """Training loss and validation score over the steps, one colour a training.

    histories: name -> history with .losses (one a step) and .scores ((step, score)).
    score: what the score is; None draws the loss alone.
    """
    fig, axes = figure(1, 1 if score is None else 2, width, height)
    left, *scored = np.atleast_1d(axes)
    for name, history in histories.items():
        (line,) = left.plot(*_smooth(history.losses), label=name)
        for right in scored if history.scores else ():
            right.plot(*zip(*history.scores), "o-", ms=3, color=line.get_color())
    left.set(xlabel="step", ylabel="training loss (running mean)")
    for axis in (left, *scored):
        axis.grid(alpha=0.6)
    for right in scored:
        right.set(xlabel="step", ylabel=score)
    if len(histories) > 1:
        with matplotlib.rc_context(STYLE):
            fig.legend(loc="outside lower center", ncols=min(len(histories), 4))
    return fig


def explorer(frames, labels, description, alt, width=None, start=0):
    """A slider over pictures, in a notebook and on the built page.

    frames: figures or images as `show` takes them; labels: what tells them apart, as
    the threshold of each; description: what the labels are, "threshold". Returns a
    widget: make it the last line of the cell. Where no kernel runs, the same pictures
    stand as HTML, of which only the one at `start` shows until a script adds a slider.
    """
    frames, labels = list(frames), [str(label) for label in labels]
    if not frames or len(frames) != len(labels):
        raise ValueError(f"{len(frames)} frames and {len(labels)} labels")
    shown = [
        _pane(frame, f"{description} {label}", alt, width)
        for frame, label in zip(frames, labels)
    ]
    panes = [widgets.HTML(pane) for pane in shown]
    last = len(panes) - 1
    play = widgets.Play(value=start, max=last, interval=900)
    slider = widgets.IntSlider(
        value=start,
        max=last,
        description=description,
        readout=False,
        style={"description_width": "initial"},
        layout={"width": "100%", "max_width": "26rem"},
    )
    if hasattr(widgets, "Stack"):
        pages = widgets.Stack(panes, selected_index=start)
    else:  # ipywidgets 7, as in Colab
        pages = widgets.Tab(panes, selected_index=start)
        for index, label in enumerate(labels):
            pages.set_title(index, label)
    widgets.jslink((play, "value"), (slider, "value"))
    widgets.jslink((slider, "value"), (pages, "selected_index"))
    controls = widgets.HBox([play, slider], layout={"flex_flow": "row wrap"})
    still = _still(shown, labels, description, start)
    return _Explorer([controls, pages], still=still)


class _Explorer(widgets.VBox):
    """The widget, with its second form for pages on which no kernel runs."""

    def __init__(self, children, still):
        super().__init__(children)
        self.still = still

    def _repr_mimebundle_(self, **options):
        bundle = super()._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        data["text/html"] = self.still
        return bundle


def _still(panes, labels, description, start):
    """All panes as HTML; `_static/explorer.js` shows one and puts a slider above."""
    frames = "".join(
        f'<div class="frame" data-label="{escape(label)}"{" hidden" * (k != start)}>'
        f"{pane}</div>"
        for k, (label, pane) in enumerate(zip(labels, panes))
    )
    return f'<div class="explorer" data-name="{escape(description)}">{frames}</div>'


def _pane(frame, caption, alt, width):
    picture = _img(frame, f"{alt}, {caption}", width)
    return f'<p style="margin:0;font-weight:600">{escape(caption)}</p>{picture}'


def _img(picture, alt, width):
    """An HTML image that holds its own data: the one form that Jupyter, Colab and the
    built page all show with a description and as WebP."""
    if not alt.strip():
        raise ValueError("alt is empty: say what the picture shows")
    if isinstance(picture, Figure):
        image, natural = _render(picture), 96 * picture.get_figwidth()
    else:
        image = Image.fromarray(np.asarray(picture))
        natural = image.width
    width = round(width or natural)
    height = round(width * image.height / image.width)
    kind, data = _compress(image)
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return (
        f'<img class="dark-light" alt="{escape(alt)}" width="{width}" '
        f'height="{height}" src="{source}" style="max-width:100%;height:auto;'
        f'margin:4px 0;border-radius:6px">'
    )


def _render(fig, dpi=120):
    for text in fig.findobj(Text):  # what was added later has matplotlib's own ink
        if str(text.get_color()) == "black":
            text.set_color(INK)
    for legend in fig.findobj(Legend):
        if str(legend.get_texts()[0].get_color()) == INK:  # has no paper of its own
            legend.set_frame_on(False)
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        fig.savefig(file, format="png", dpi=dpi)
    return Image.open(file)  # RGBA


def _compress(image):
    """The smallest of PNG, lossless WebP and, for what is large, lossy WebP."""
    settings = {
        "png": dict(format="png", optimize=True),
        "webp": dict(format="webp", lossless=True, quality=90, method=4),
    }
    files = [(kind, _encode(image, options)) for kind, options in settings.items()]
    smallest = min(files, key=lambda file: len(file[1]))
    if len(smallest[1]) > 30_000:
        lossy = _encode(image, dict(format="webp", quality=60, method=6))
        smallest = min(smallest, ("webp", lossy), key=lambda file: len(file[1]))
    return smallest


def _encode(image, options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def _smooth(values):
    """Steps and running mean over a fiftieth of them: (x, y)."""
    values = np.asarray(values, dtype=float)
    span = max(1, len(values) // 50)
    if not len(values):
        return values, values
    mean = np.convolve(values, np.ones(span) / span, mode="valid")
    return np.arange(span, len(values) + 1), mean


def _errors(image, wrong, counted):
    faded = 0.35 * _rgb(image) + 0.65 * 255
    faded[~counted] = 160
    faded[wrong] = WRONG
    return faded.round().astype(np.uint8)


def _array(data):
    return data.detach().cpu().numpy() if hasattr(data, "detach") else np.asarray(data)


def _rgb(image):
    """(H, W), (1, H, W) or (3, H, W) uint8 -> (H, W, 3)."""
    image = _array(image)
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.dtype != np.uint8:
        raise ValueError(
            "expected a uint8 image (H, W), (1, H, W) or (3, H, W), "
            f"got {image.dtype} {image.shape}"
        )
    return np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3))
