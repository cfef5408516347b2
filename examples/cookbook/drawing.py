"""Pictures of the cookbook examples: plotly figures, each saved as one HTML file that opens anywhere."""

from pathlib import Path

import plotly.graph_objects as go


def disks(centres, diameters, side: float, colours, title: str) -> go.Figure:
    """Disks in a periodic square, with the images that reach into it."""
    figure = go.Figure()
    for (x, y), diameter, colour in zip(centres, diameters, colours, strict=True):
        for image_x in (x - side, x, x + side):
            for image_y in (y - side, y, y + side):
                r = diameter / 2
                if -r < image_x < side + r and -r < image_y < side + r:
                    box = {"x0": image_x - r, "x1": image_x + r, "y0": image_y - r, "y1": image_y + r}
                    figure.add_shape(type="circle", **box, fillcolor=colour, line={"width": 1}, opacity=0.8)
    figure.update_xaxes(range=[0, side])
    figure.update_yaxes(range=[0, side], scaleanchor="x")
    return figure.update_layout(title=title, template="plotly_white", width=640, height=680)


def save(figure: go.Figure, directory: Path, name: str) -> None:
    """Write ``name`` as HTML into the directory, which is made where it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    figure.write_html(directory / name, include_plotlyjs="directory")
    print(f"picture: {directory / name}")
