# Times this project against the plain procedure (`snakemake --force bench` measures again). The files that it writes,
# results/bench/<machine>.csv and .md, aren't declared as outputs, since only the job knows the machine's name.


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
