"""`nimway crds`: print the CustomResourceDefinitions, or write them to a folder."""

from pathlib import Path

import click

from nimway.api.crd import build_crds, render


@click.command()
@click.option(
    "--write",
    "folders",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Write one file per CRD into this folder instead of printing them.",
)
def crds(folders: tuple[Path, ...]) -> None:
    """Print the CustomResourceDefinitions, for `kubectl apply --server-side -f -`."""
    rendered = {name: render(crd) for name, crd in build_crds().items()}
    if not folders:
        click.echo("---\n".join(rendered.values()), nl=False)
    for folder in folders:
        for name, text in rendered.items():
            (folder / name).write_text(text, encoding="utf-8")
