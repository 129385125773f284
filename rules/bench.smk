# This project against the plain procedure (`snakemake --force bench` measures again). What it writes is no declared
# output, since only the job knows the name: results/bench/<machine>.csv and .md.


localrules:
    bench,


def paper_grid(wildcards):
    paper = Settings.of({**config, "scale": "paper", "seeds": None})
    training = paper.train(paper.models[0])
    return {
        "width": training["network"]["width"],
        "epochs": training["training"]["epochs"],
        "images": 50_000,
        "seeds": len(paper.seeds),
        "pairs": len(paper.types_paired),
        "invariance_from": [how["invariance_from"] for how in paper.config["models"].values()],
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
        mem_mb=12000,
        runtime=60,
        gpu=GPU,
    params:
        settings=SETTINGS.config["bench"],
        paper=paper_grid,
        root=workflow.basedir,
        device=SETTINGS.config["device"],
    script:
        "../workflow_scripts/bench.py"
