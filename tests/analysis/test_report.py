"""The report of four tiny models: self-contained, complete, and rendered by a real browser."""

import base64
import csv
import json
import re
import shutil
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

import pytest
import timm
import torch
from helpers.browser import CHROMIUM, Seen, check_access, see
from PIL import Image

import attn_plugins
from attn_plugins.analysis.exhibit import Exhibit
from attn_plugins.analysis.findings import Settings
from attn_plugins.analysis.images import Images, find_images
from attn_plugins.analysis.panels import contrast
from attn_plugins.analysis.report import as_table, exhibits, write_report
from attn_plugins.analysis.subjects import Subject, from_checkpoints
from attn_plugins.checkpoints import save
from attn_plugins.cli import main
from attn_plugins.data.layouts.voc import write_voc

SPECS = ("softmax", "registers:num=4", "specialization", "entmax15")
OPTIONS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 3,
    "dynamic_img_size": True,
}
FIGURES = ("pca", "pib", "diffusion", "discovery", "attention", "overlay", "reach", "maps", "norms", "drift")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set, four checkpoints, a probe's result."""
    folder = tmp_path_factory.mktemp("run")
    data = write_voc(folder / "voc", 2, 6, 0, (48, 64))
    for index, spec in enumerate(SPECS):
        torch.manual_seed(index)
        model = attn_plugins.patch(timm.create_model("vit_tiny_patch16_224", num_classes=0, **OPTIONS), spec)
        save(folder / f"{index}.pth", model, arch="timm/vit_tiny_patch16_224", arch_options=OPTIONS)
        for layer in (0, 2):
            work_dir = folder / ("probes" if layer == 2 else "others") / f"{index}-{layer}"
            work_dir.mkdir(parents=True)
            identity = {"arch": "timm/x", "plugins": spec, "checkpoint": f"{index}.pth", "sha256": f"{index}"}
            record = {
                "probe": "voc2012",
                "max_iters": 1,
                "backbone": identity | {"layers": [layer], "norm": True, "cls_token": "none"},
                "evaluations": [{"split": "val", "iter": 1, "metrics": {"mIoU": 30.0 + layer + index}}],
            }
            (work_dir / "probe.json").write_text(json.dumps(record))
    return folder, data


@pytest.fixture(scope="module")
def report(run: tuple[Path, Path]) -> Path:
    folder, data = run
    out = folder / "out" / "report.html"
    checkpoints = [str(folder / f"{index}.pth") for index in range(len(SPECS))]
    arguments = ["report", *checkpoints, "--data", str(data), "--size", "32", "--pictures", "2", "--out", str(out)]
    arguments += ["--masks", str(data / "SegmentationClass")]
    assert main([*arguments, "--work-dirs", str(folder / "probes"), "--layer-dirs", str(folder)]) == 0
    return out


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[dict[str, Any]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))


@pytest.mark.slow
def test_the_page_needs_nothing_from_elsewhere(report: Path) -> None:
    text = report.read_text()
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"""src=["'](?!data:)""", text)
    assert "url(" not in text.split("</style>")[0] and "@import" not in text
    assert len(page.images) > len(FIGURES) + len(SPECS) and "What the plugins changed" in text
    for image in page.images:
        assert len(image["alt"]) > 10
        source = re.fullmatch(r"data:image/(svg\+xml|webp);base64,(.+)", image["src"])
        assert source is not None
        content = base64.b64decode(source[2])
        assert content.startswith(b"RIFF" if source[1] == "webp" else b"<?xml")
    assert 'name="viewport"' in text and "default-src 'none'" in text


@pytest.mark.slow
def test_every_link_leads_to_a_file_beside_it(report: Path) -> None:
    linked = {unquote(href) for href in re.findall(r'href="([^#"]+)"', report.read_text())}
    assert linked == {f"report/{path.name}" for path in report.with_suffix("").iterdir()} - {
        f"report/{name}" for name in ("pca.png", "pib.png", "overlay.png", "maps.png", "changes.csv")
    }


@pytest.mark.slow
def test_it_tells_what_made_it(report: Path, run: tuple[Path, Path]) -> None:
    text = report.read_text()
    for subject in from_checkpoints([run[0] / f"{index}.pth" for index in range(4)]):
        assert subject.sha256 is not None and subject.sha256 in text
        assert subject.spec is not None and subject.spec in text
    for wanted in ("Table 1", "paper: Entmax-1.5", "69.50", "seed", f"torch {metadata.version('torch')}", "Provenance"):
        assert wanted in text, wanted


@pytest.mark.slow
def test_pictures_and_numbers_of_every_figure_lie_beside_it(report: Path) -> None:
    folder = report.with_suffix("")
    for name in (*FIGURES, "layers"):
        pictures = list(folder.glob(f"{name}*.png"))
        assert pictures
        for path in pictures:
            with Image.open(path) as picture:
                assert min(picture.size) > 150
        rows = list(csv.DictReader((folder / f"{name}.csv").open()))
        names = set(SPECS[1:]) if name == "drift" else set(SPECS)
        assert {row.get("model", row.get("method")) for row in rows} == names, name
    found = {(r["model"], r["layer"]): r for r in csv.DictReader((folder / "pib.csv").open())}
    assert len(found) == 12
    for row in found.values():
        assert float(row["low"]) <= float(row["pib"]) <= float(row["high"])
    zeros = {r["model"]: float(r["zero_share"]) for r in csv.DictReader((folder / "attention.csv").open())}
    assert zeros["softmax"] == 0
    assert {row["norm"] for row in found.values()} == {"final"}


@pytest.mark.slow
def test_nothing_partial_is_left_behind(report: Path) -> None:
    assert not [path for path in report.parent.rglob("*") if path.name.startswith(".")]


needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium is installed (Debian: apt-get install chromium)"
)


def check_layout(page: Path, folder: Path, width: int, dark: bool) -> Seen:
    """A page as a reader needs it: nothing wider than the screen, nothing too small or too faint to read."""
    seen = see(page, width, dark, folder)
    assert seen.width == width and seen.scroll <= width, f"{seen.scroll} pixels wide on {width}"
    for one in seen.texts:
        assert one["size"] >= 12, one
        assert one["scrolls"] or one["right"] <= width, one
    faint = {what: ratio for what, ratio in seen.contrasts().items() if ratio < 4.5}
    assert not faint
    assert len(seen.images) > 10
    for image in seen.images:
        assert image["natural"] > 0 and image["alt"], "a picture that did not load, or says nothing"
        assert 0 < image["width"] <= width and image["right"] <= width
    drawn = seen.drawn_texts()
    assert len(drawn) > 200
    for alt, size, colour in drawn:
        assert size >= 9, (alt, size)
        rgb = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        # White stands in cells of heat maps, where test_panels looks at it.
        assert colour == "#ffffff" or contrast(rgb, (1, 1, 1)) >= 4.5, (alt, colour)
    assert len(seen.columns) == (1 if width < 700 else 2), "panels stand below one another on a phone"
    check_access(seen)
    return seen


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, False), (1280, True)])
def test_a_browser_shows_it_on_a_phone_and_on_a_desk(report: Path, tmp_path: Path, width: int, dark: bool) -> None:
    seen = check_layout(report, tmp_path, width, dark)
    grounds = {one["ground"] for one in seen.texts}
    assert ("rgb(29, 33, 38)" in grounds) == dark and ("rgb(255, 255, 255)" in grounds) == (not dark)


@needs_browser
@pytest.mark.nightly
def test_twenty_models_of_two_specs_and_ten_epochs(run: tuple[Path, Path], tmp_path: Path) -> None:
    folder, data = run
    subjects = []
    for index in range(20):
        spec = ("softmax", "entmax15")[index % 2]
        (one,) = from_checkpoints([folder / ("0.pth", "3.pth")[index % 2]])
        subjects.append(
            Subject(f"{spec}, epoch {20 + 20 * (index // 2)}", one.load, spec, epoch=20 + 20 * (index // 2))
        )
    for index, subject in enumerate(subjects):
        for layer in (0, 1, 2):
            work_dir = tmp_path / "layers" / f"{index}-{layer}"
            work_dir.mkdir(parents=True)
            backbone = {"plugins": subject.spec, "checkpoint": f"checkpoint{subject.epoch:04d}.pth", "layers": [layer]}
            evaluations = [{"split": "val", "iter": 1, "metrics": {"mIoU": 20.0 + layer + index}}]
            record = {"probe": "voc2012", "max_iters": 1, "backbone": backbone, "evaluations": evaluations}
            (work_dir / "probe.json").write_text(json.dumps(record))
    settings = Settings(size=32, pictures=4, limit=6)
    out = write_report(
        tmp_path / "report.html", subjects, find_images(data), settings, layer_dirs=[tmp_path / "layers"]
    )
    assert out.stat().st_size < 5e6
    again = out.read_bytes()
    write_report(out, subjects, find_images(data), settings, layer_dirs=[tmp_path / "layers"])
    assert out.read_bytes() == again
    for width in (390, 1280):
        for dark in (False, True):
            (tmp_path / f"{width}-{dark}").mkdir()
            check_layout(out, tmp_path / f"{width}-{dark}", width, dark)


@pytest.mark.slow
def test_a_figure_gives_the_same_bytes_again(run: tuple[Path, Path]) -> None:
    folder, data = run
    subjects = [Subject.of(subject.load(), subject.name) for subject in from_checkpoints([folder / "3.pth"])]
    settings = Settings(size=32, pictures=2, limit=3)
    first, second = (exhibits(subjects, find_images(data), settings, ["norms", "pca"]) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert isinstance(a, Exhibit) and a.table() == b.table()
        for one, other in zip(a.panels, b.panels, strict=True):
            assert [one.render(form) for form in one.forms] == [other.render(form) for form in other.forms]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pib", "pca", "diffusion", "discovery", "attention", "maps", "norms", "drift"])
def test_analyze_writes_each_figure(
    run: tuple[Path, Path], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = run
    arguments = ["analyze", kind, str(folder / "0.pth"), str(folder / "3.pth"), "--data", str(data), "--size", "32"]
    assert main([*arguments, "--limit", "4", "--out", str(tmp_path)]) == 0
    drawn = {path.suffix for path in tmp_path.iterdir()}
    assert drawn == ({".png", ".csv"} if kind == "pca" else {".png", ".csv", ".svg"})
    assert "entmax15" in capsys.readouterr().out


def test_analyze_layers_and_what_is_refused(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = run
    assert main(["analyze", "layers", str(folder), "--out", str(tmp_path)]) == 0
    assert list(tmp_path.glob("layers*.png"))
    assert main(["analyze", "layers", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert f"no probe.json below {tmp_path}" in capsys.readouterr().err
    odd = ["analyze", "norms", str(folder / "0.pth"), "--data", str(data), "--size", "30", "--out", str(tmp_path)]
    assert main(odd) == 2
    assert "size=30 is no multiple of the patch size 8" in capsys.readouterr().err


@pytest.mark.slow
def test_statistics_over_all_images(
    run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = run
    drawn, sample = [], Images.sample

    def drawing(self: Images, count: int | None, seed: int) -> Images:
        drawn.append(count)
        return sample(self, count, seed)

    monkeypatch.setattr(Images, "sample", drawing)
    arguments = ["analyze", "norms", str(folder / "0.pth"), "--data", str(data), "--size", "32", "--pictures", "1"]
    for option in ([], ["--limit", "3"], ["--limit", "all"]):
        assert main([*arguments, *option, "--out", str(tmp_path)]) == 0
    assert [count for count in drawn if count != 1] == [200, 3, None]  # one is for the pictures
    with pytest.raises(SystemExit):
        main([*arguments, "--limit", "every"])
    assert "'every' is neither a number nor 'all'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "option", "says"),
    [
        ("pib", ["--below", "2"], "below=2.0; use a share of the image"),
        ("pib", ["--resize", "16"], "resize=16 is below size=32"),
        ("attention", ["--heads", "0", "3"], "heads=[0, 3]: softmax has heads 0 to 2"),
        ("attention", ["--layer", "3"], "layer=3: the model has layers 0 to 2"),
        ("pca", ["--pictures", "0"], "pictures=0; use a number of at least 1"),
        ("norms", ["--batch", "0"], "batch=0; use a number of at least 1"),
        ("norms", ["--limit", "-3"], "limit=-3; use a number of at least 1"),
        ("pca", ["--foreground", "2"], "foreground=2.0; use a threshold between 0 and 1"),
        ("norms", ["--device", "tpu"], "device='tpu'; use 'cpu' or 'cuda'"),
    ],
)
def test_what_is_out_of_range_is_refused_in_words(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, option: list[str], says: str
) -> None:
    folder, data = run
    arguments = ["analyze", kind, str(folder / "0.pth"), "--data", str(data), "--size", "32", *option]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert says in told and "/6" not in told  # before the time is spent
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU; this one has one")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="finds no GPU; use 'cpu'"):
        Settings(device="cuda:0")


@pytest.mark.slow
def test_a_report_shows_the_heads_that_were_asked_for(run: tuple[Path, Path], tmp_path: Path) -> None:
    folder, data = run
    arguments = ["report", str(folder / "0.pth"), "--data", str(data), "--size", "32", "--limit", "2"]
    assert main([*arguments, "--heads", "2", "--out", str(tmp_path / "r.html")]) == 0
    rows = csv.DictReader((tmp_path / "r" / "overlay.csv").open())
    assert [row["map"] for row in rows] == ["mean of heads", "head 2"]


def test_damaged_probes_do_not_cost_the_analyses(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = run
    (tmp_path / "probe.json").write_text("{")
    arguments = ["report", str(folder / "0.pth"), "--data", str(data), "--size", "32"]
    arguments += ["--out", str(tmp_path / "r.html")]
    for option in ("--work-dirs", "--layer-dirs"):
        assert main([*arguments, option, str(tmp_path)]) == 2
        told = capsys.readouterr().err
        assert "probe.json" in told and "token norms" not in told


@pytest.mark.parametrize(
    ("last", "says"),
    [
        ("3.pth=entmax15@1-3", "there are 3 attention layers"),
        ("1.pth=entmax15+registers:num=2", "does not fit"),
        ("3.pth=entmax15:scale=-1", "is no factor on the scores"),
        ("wider.pth", "size=32 is no multiple of the patch size 12"),
    ],
)
def test_what_the_last_model_cannot_do_is_told_before_the_first_is_examined(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], last: str, says: str
) -> None:
    folder, data = run
    options = OPTIONS | {"patch_size": 12, "img_size": 36}
    wider = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options)
    save(folder / "wider.pth", wider, arch="timm/vit_tiny_patch16_224", arch_options=options)
    arguments = ["report", str(folder / "0.pth"), str(folder / "3.pth"), str(folder / last), "--data", str(data)]
    assert main([*arguments, "--size", "32", "--limit", "2", "--out", str(tmp_path / "r.html")]) == 2
    told = capsys.readouterr().err
    assert says in told and "softmax, images" not in told
    assert not (tmp_path / "r.html").exists()


def test_tables_of_ones_own(tmp_path: Path, run: tuple[Path, Path]) -> None:
    folder, data = run
    (subject,) = from_checkpoints([folder / "0.pth"])
    table = as_table([{"method": "softmax", "mIoU": 12.5}], "This run", "Measured & <escaped>.")
    text = write_report(tmp_path / "r.html", [], None, tables=[table]).read_text()
    assert "<td>12.5</td>" in text and "Measured &amp; &lt;escaped&gt;." in text
    with pytest.raises(ValueError, match="nothing to report"):
        write_report(tmp_path / "r.html", [], find_images(data))
    with pytest.raises(ValueError, match="models are shown images"):
        write_report(tmp_path / "r.html", [subject], None)


def test_a_report_of_probes_alone_and_the_same_bytes_again(run: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = run
    arguments = ["report", "--work-dirs", str(folder / "probes"), "--layer-dirs", str(folder)]
    out = tmp_path / "r.html"
    assert main([*arguments, "--out", str(out)]) == 0
    text = out.read_text()
    assert "Table 1" in text and "Dense quality by layer" in text and "Point-in-box" not in text
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([*arguments, "--out", str(out)]) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_needs_a_second_model_or_masks_says_so(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = run
    common = [str(folder / "0.pth"), "--data", str(data / "JPEGImages"), "--size", "32", "--out", str(tmp_path)]
    for kind, needs in (("drift", "a second model"), ("discovery", "boxes or masks"), ("pib", "boxes")):
        assert main(["analyze", kind, *common]) == 2
        assert f"{kind} needs {needs}, and there are none" in capsys.readouterr().err
    assert main(["analyze", "discovery", *common, "--masked", str(data / "JPEGImages")]) == 2
    assert "name the folder of these with --masks" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("a$\\frac$é漢", "x\ny<b>$^$.png"), id="two"),
        pytest.param(
            ("x\ny", "a$\\frac$", "_$x", "<b>$^$", "é漢", "x.png"), id="one by one", marks=pytest.mark.nightly
        ),
    ],
)
def test_names_of_folders_are_drawn_as_they_are(run: tuple[Path, Path], tmp_path: Path, names: tuple[str, ...]) -> None:
    """`$...$` is no formula, `_x` stays in the legend, and what cannot be printed is escaped."""
    checkpoints = []
    for name in names:
        (tmp_path / name).mkdir()
        checkpoints.append(shutil.copy(run[0] / "3.pth", tmp_path / name / "weights.pth"))
    subjects = from_checkpoints(checkpoints)
    (broken,) = (name.replace("\n", "\\n") for name in names if "\n" in name)
    assert f"entmax15, {broken}/weights" in [subject.name for subject in subjects]
    settings = Settings(size=32, pictures=1, limit=2)
    drawn = exhibits([*subjects, Subject("_alone$^$", subjects[0].load)], find_images(run[1]), settings)
    assert {exhibit.name for exhibit in drawn} == set(FIGURES)
    for panel in (panel for exhibit in drawn for panel in exhibit.panels):
        assert all(panel.render(form) for form in panel.forms)
    few = exhibits([*subjects[:3], Subject("_alone$^$", subjects[0].load)], find_images(run[1]), settings, ["norms"])
    legend = few[0].panels[0].drawing.legends[0]
    shown = [text.get_text().replace(r"\$", "$").strip() for text in legend.get_texts()]
    assert shown == [*(subject.name for subject in subjects[:3]), "_alone$^$"]


@pytest.mark.parametrize("out", ["page", "there", "link.html", "taken.html"])
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_examined(
    run: tuple[Path, Path], tmp_path: Path, out: str
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link.html").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "taken").write_text("a file")

    def load() -> NoReturn:
        raise AssertionError("a model was loaded")

    subject = Subject("x", load)
    with pytest.raises((ValueError, FileExistsError), match=r"has no suffix|is a link|taken"):
        write_report(tmp_path / out, [subject], find_images(run[1]), Settings(size=32))
    assert (tmp_path / "taken").read_text() == "a file"
