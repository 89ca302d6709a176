"""`nimway crds`: print the CustomResourceDefinitions or their reference, or write them to files."""

from pathlib import Path

import click

from nimway.api import reference as api_reference
from nimway.api.crd import build_crds, render


@click.command()
@click.option(
    "--write",
    "folders",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Write one file per CRD into this folder instead of printing them.",
)
@click.option("--reference", is_flag=True, help="Print the API reference (Markdown) instead.")
def crds(folders: tuple[Path, ...], *, reference: bool) -> None:
    """Print the CustomResourceDefinitions, for `kubectl apply --server-side -f -`."""
    if reference:
        if folders:
            raise click.UsageError("--reference prints one page: it does not go with --write")
        click.echo(api_reference.render(), nl=False)
        return
    rendered = {name: render(crd) for name, crd in build_crds().items()}
    if not folders:
        click.echo("---\n".join(rendered.values()), nl=False)
    for folder in folders:
        for name, text in rendered.items():
            (folder / name).write_text(text, encoding="utf-8")
