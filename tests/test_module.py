import shutil

import pandas as pd
import pytest
import yaml
from conftest import TINY, Clone, config_of

SNAKEFILE = """
configfile: "mine.yaml"

module relu:
    snakefile: "{clone}/Snakefile"
    config: config
    {prefix}

use rule * from relu as relu_*

rule accuracies:
    default_target: True
    input: rules.relu_table2.output, rules.relu_lemma_2_2.output, rules.relu_figure4.output
    output: "accuracies.txt"
    shell: "cut -d, -f1,2 {{input[0]}} > {{output}}"
"""


@pytest.mark.slow(seconds=20)
def test_a_workflow_uses_ours_under_a_prefix_with_its_own_config_and_in_its_own_folder(tiny, tmp_path):
    made = tiny()
    config = config_of(made.folder) | {"seeds": 0, "models": dict.fromkeys(TINY["models"])}
    config |= {"models": config["models"] | {"cnn": {"name": "Mine"}}, "figure9": None}
    mine, outer = Clone.at(tmp_path), tmp_path
    (outer / "mine.yaml").write_text(yaml.safe_dump(config))
    (outer / "Snakefile").write_text(SNAKEFILE.format(clone=made.folder, prefix=""))
    run = mine.snakemake
    ended = run()
    assert ended.returncode == 0, ended.stdout
    table = pd.read_csv(outer / "results/tiny/tables/table2.csv")
    assert table["model"].tolist() == ["cnn"] and (table["n"] + table["left_out"]).tolist() == [1]
    assert (outer / "accuracies.txt").read_text().startswith("model,accuracy_mean\ncnn,")
    assert (outer / "results/tiny/figures/figure4.png").exists()
    assert not (made.folder / "results").exists() and not (made.folder / "data").exists()
    assert "Nothing to be done" in run("--rerun-triggers", "mtime").stdout
    assert "relu_train" in run("--rerun-triggers", "mtime", "--forcerun", "relu_train", "--dry-run").stdout


@pytest.mark.slow(seconds=10)
def test_under_a_prefix_finished_records_are_found(finished, tiny, tmp_path):
    made = tiny()
    mine = Clone.at(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config_of(made.folder)))
    (tmp_path / "Snakefile").write_text(SNAKEFILE.format(clone=made.folder, prefix='prefix: "below"'))
    shutil.copytree(finished.folder / "results/tiny/records", tmp_path / "below/results/tiny/records")
    shutil.copytree(finished.folder / "results/tiny/filters", tmp_path / "below/results/tiny/filters")
    assert mine.planned() == ["accuracies", "relu_figure4", "relu_table2"]
    ended = mine.snakemake()
    assert ended.returncode == 0, ended.stdout
    assert not (tmp_path / "results").exists() and not (tmp_path / "below/data").exists()
    for name in ("tables/table2.csv", "figures/figure4.png"):
        ours, its = (folder / "results/tiny" / name for folder in (tmp_path / "below", finished.folder))
        assert ours.read_bytes() == its.read_bytes()
    assert "Nothing to be done" in mine.snakemake().stdout
    other = config_of(made.folder) | {"training": {"weight_decay": 0.5}}  # which is another net
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(other))
    assert {"relu_train cnn 0", "relu_table2", "accuracies"} <= {*mine.planned()}
