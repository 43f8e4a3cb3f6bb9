"""What papers on pruning compare to: a few lines of the authors' tables, told and drawn, and what is no such table."""

import math

import pytest

from accelerando.recipes.literature import main
from accelerando.recipes.studies.pruning_papers import (
    draw,
    papers_by_pair,
    read_ours,
    read_papers,
    read_results,
    spread,
)

# From analysis/assets/existing-results of JJGO/shrinkbench @ b2449745 (MIT).
COLUMNS = "Paper,Dataset,Model,Err1,Top1,dTop1,MParams,savedParams,keptParams,GFLOPS,savedFLOPS,keptFLOPS,OrigTop1"
COLUMNS += ",OrigMParams,OrigGFLOPS,old/new Nparam,old/new FLOPS,OrigErr1"
RESULTS = f"""{COLUMNS}
amc-automl-han,ImageNet,VGG-16,,,-1.400%,,80.00%,,,,,70.50%,,,,,
autopruner,ImageNet,VGG-16,,69.20%,,,,,8.1700,,,71.59%,,30.949,,,
han-prune-quant-huff,ImageNet,VGG-16,31.17%,,,,,7.50%,,,,,138.000,,,,31.50%
learning-both,ImageNet,VGG-16,,,,,92.50%,,,89.00%,,,138.000,30.900,,,
learning-compression,CIFAR-10,ResNet-56,6.92%,,,0.1273,,,,,,93.14%,0.850,,,,
huang-prune-filters,CIFAR-10,VGG-16,,,-0.600%,,20.00%,,,,,,,,-1,1.810,
amc-automl-han,CIFAR-10,Plain-20,,,,,,,,,,,,,,,
"""
PAPERS = """Name,Compares To
autopruner,"thinet-channel-norms,sss,runtime-neural-pruning,nvidia-taylor-pruning,pruning-filters,channel-lasso-lstsq"
huang-prune-filters,pruning-filters
google-interchannel,
"""


@pytest.fixture
def files(tmp_path):
    results, papers = tmp_path / "results.csv", tmp_path / "papers.csv"
    results.write_text(RESULTS, encoding="utf-8-sig")  # as theirs begin
    papers.write_text(PAPERS, encoding="utf-8-sig")
    return results, papers


def test_results_in_whatever_way_a_paper_tells_them(files):
    amc, autopruner, han, learning, compression, huang, nothing = read_results(files[0])
    assert math.isnan(amc.speedup) and amc.compression == pytest.approx(5) and amc.top1 == pytest.approx(0.691)
    assert autopruner.speedup == pytest.approx(30.949 / 8.17) and autopruner.change1 == pytest.approx(-0.0239)
    assert han.compression == pytest.approx(1 / 0.075) and han.change1 == pytest.approx(0.315 - 0.3117)
    assert learning.compression == pytest.approx(1 / 0.075) and learning.speedup == pytest.approx(1 / 0.11)
    assert compression.compression == pytest.approx(0.85 / 0.1273) and compression.top1 == pytest.approx(0.9308)
    assert huang.compression == pytest.approx(1.25)  # as no ratio is negative
    assert huang.speedup == 1.81 and huang.change1 == pytest.approx(-0.006) and math.isnan(huang.top1)
    assert all(math.isnan(getattr(nothing, name)) for name in ("compression", "speedup", "top1", "parameters"))


def test_what_they_compare_to_and_on_what(files, capsys):
    results, papers = read_results(files[0]), read_papers(files[1])
    assert {name: len(others) for name, others in papers.items()} == {
        "autopruner": 6,
        "huang-prune-filters": 1,
        "google-interchannel": 0,
    }
    counts = {pair: len(own) for pair, own in papers_by_pair(results).items()}
    assert next(iter(counts)) == "VGG-16 on ImageNet" and counts["VGG-16 on ImageNet"] == 4
    assert spread(results, "dense1") == {"VGG-16 on ImageNet": (pytest.approx(0.685), pytest.approx(0.7159), 3)}
    assert spread(results, "multiply_adds") == {"VGG-16 on ImageNet": (30.9, 30.949, 2)}
    main([*map(str, files)])
    told = capsys.readouterr().out
    assert "3 papers, 7 results on 4 pairs" in told and "1 (33.3 %) compare to no other" in told
    assert "30.9 to 30.95 (2 papers)" in told


OURS = """source,pair,initial,method,compression,speedup,top1,change1
,vgg,one,random,2.0,1.8,0.6,-0.1
,vgg,one,random,4.0,3.1,0.5,-0.2
,other,one,random,2.0,1.8,0.9,0.0
theirs,vgg,,GlobalMagWeight,2.0,nan,0.7,nan
"""


def test_ours_are_drawn_beside_what_is_published(files, tmp_path):
    ours = tmp_path / "shrinkbench.csv"
    ours.write_text(OURS)
    curves = read_ours(ours, "vgg")
    figure = draw(read_results(files[0]), "VGG-16 on ImageNet", curves)
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert drawn["here: random, one"] == [[2.0, 0.6], [4.0, 0.5]]
    assert drawn["han-prune-quant-huff"] == [pytest.approx([1 / 0.075, 0.6883])]
    # Of the fourth paper no accuracy is known.
    assert set(drawn) == {"amc-automl-han", "autopruner", "han-prune-quant-huff", "here: random, one"}
    main([*map(str, files), f"--figure={tmp_path / 'papers.png'}", f"--ours={ours}:vgg"])
    assert (tmp_path / "papers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{papers}", "{papers}"], "papers.csv: has no column Paper; expected Paper, Dataset"),
        (["{results}", "nowhere.csv"], "No such file or directory: 'nowhere.csv'"),
        (
            ["{results}", "{papers}", "--pair=VGG-16"],
            "--pair: no paper has 'VGG-16'; expected one such as VGG-16 on",
        ),
        (["{results}", "{papers}", "--ours={ours}:vgg"], "--ours: "),
        (["{results}", "{papers}", "--figure={png}", "--ours={ours}"], "expected TABLE.csv:PAIR, beside --figure"),
        (["{results}", "{papers}", "--figure={png}", "--ours={ours}:none"], "shrinkbench.csv: has no pair none"),
        (["{bad}", "{papers}"], "bad.csv, line 3: Top1 is 'high'; expected a number"),
        (["{points}", "{papers}"], "points.csv, line 3: Top1 is 69.2; expected a share, from 0 to 1"),
        (["{latin}", "{papers}"], "latin.csv: not readable as CSV; 'utf-8' codec can't decode"),
    ],
)
def test_mistakes_are_one_line(arguments, message, files, tmp_path, capsys):
    places = {"results": files[0], "papers": files[1], "ours": tmp_path / "shrinkbench.csv"}
    places |= {"bad": tmp_path / "bad.csv", "png": tmp_path / "figure.png"}
    places["ours"].write_text(OURS)
    places |= {name: tmp_path / f"{name}.csv" for name in ("points", "latin")}
    places["bad"].write_text(RESULTS.replace("69.20%", "high"))
    places["points"].write_text(RESULTS.replace("69.20%", "69.20"))
    places["latin"].write_text(RESULTS.replace("amc", "amç"), encoding="latin-1")
    with pytest.raises(SystemExit) as ended:
        main([argument.format(**places) for argument in arguments])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said and said.count("\n") == 1
