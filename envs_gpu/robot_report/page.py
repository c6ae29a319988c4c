"""A report as one HTML file, with its picture inside."""

from __future__ import annotations

import base64
import html
import io

from envs_gpu.robot_report.report import RobotReport

STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:left}"
    "img{max-width:100%;border-radius:6px}"
)


def page_of(report: RobotReport) -> str:
    """The HTML of a report; it needs no other file."""
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in report.lines())
    rows = "".join(
        f"<tr><td>{html.escape(one.name)}</td><td>{html.escape(one.drives)}</td>"
        f"<td>{one.low:g}</td><td>{one.high:g}</td></tr>"
        for one in report.contents.actuators
    )
    return (
        f"<!doctype html><meta charset=utf-8><title>{html.escape(report.file)}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(report.file)}</h1>{_picture(report)}<ul>{lines}</ul>"
        f"<table><tr><th>actuator</th><th>drives</th><th>from</th><th>to</th></tr>{rows}</table>\n"
    )


def png_of(report: RobotReport) -> bytes | None:
    """The picture as PNG; None where nothing could be drawn."""
    if report.picture is None:
        return None
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(report.picture).save(file, "PNG")
    return file.getvalue()


def _picture(report: RobotReport) -> str:
    png = png_of(report)
    if png is None:
        return "<p>No picture: no OpenGL driver works here.</p>"
    return f'<img alt="start pose" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
