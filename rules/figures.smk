# Figure 4, from records alone.


localrules:
    figure4,


rule figure4:
    input:
        flip_merge=FLIP_RECORDS,
        changed=remade(FLIP_RECORDS),
        code=f"{workflow.basedir}/workflow_scripts/relusym/permutation_order.py",
    output:
        report(
            f"{RESULTS}/figures/figure4.png",
            caption="../report/figure4.rst",
            category="Figures",
            labels={"figure": "Figure 4"},
        ),
        multiext(f"{RESULTS}/figures/figure4", ".pdf", ".csv"),
    log:
        f"{LOGS}/figure4.log",
    benchmark:
        f"{BENCHMARKS}/figures/figure4.tsv"
    conda:
        "../envs/relusym.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        models=SETTINGS.models,
    script:
        "../workflow_scripts/figure4.py"
