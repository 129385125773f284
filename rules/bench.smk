# This project against the plain procedure (`snakemake --force bench` measures again). What it writes is no declared
# output, since only the job knows the name: results/bench/<machine>.csv and .md.


rule bench:
    log:
        "results/bench/logs/bench.log",
    benchmark:
        "results/bench/logs/bench.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    threads: lambda wildcards: workflow.cores
    resources:
        gpu=GPU,
    params:
        root=str(ROOT),
        device=SETTINGS.run.device,
    script:
        "../workflow_scripts/bench.py"
