# This project against the plain procedure (`snakemake --force bench` measures again). What it writes is no declared
# output, since only the job knows the name: results/bench/<machine>.csv and .md.


localrules:
    bench,


def paper_grid(wildcards):
    """What the benchmark has to know of the paper's grid, to say how long it would take."""
    paper = Settings.of({**config, "scale": "paper", "seeds": None})
    models = [paper.models[model] for model in paper.table("table2")]
    how = [model.stage("training") for model in models]
    return {
        "width": models[0].given["network"]["width"],
        "epochs": how[0]["epochs"],
        "images": 50_000,
        "seeds": len(paper.all_seeds),
        "pairs": len(paper.types_paired),
        "invariance_from": [stage["invariance_from"] for stage in how],
    }


rule bench:
    log:
        "results/bench/logs/bench.log",
    benchmark:
        "results/bench/logs/bench.tsv"
    conda:
        "../envs/relusym.yaml"
    threads: lambda wildcards: workflow.cores
    resources:
        gpu=GPU,
    params:
        settings=SETTINGS.config["bench"],
        paper=paper_grid,
        root=workflow.basedir,
        device=SETTINGS.config["device"],
    script:
        "../workflow_scripts/bench.py"
