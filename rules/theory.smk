# The paper's statements, each demonstrated by a module of relusym.theory; `snakemake theory` does all, `snakemake
# lemma_2_2` one.


localrules:
    theory,


for name in STATEMENTS:

    rule:
        name:
            name
        input:
            changed=outdated(THEORY_RECORD.format(statement=name)),
        output:
            record=report(
                THEORY_RECORD.format(statement=name),
                caption=f"../report/{name}.rst",
                category="Theory",
                labels={"statement": name.replace("_", " ", 1).replace("_", ".").title()},
            ),
        log:
            f"{LOGS}/theory/{name}.log",
        benchmark:
            f"{BENCHMARKS}/theory/{name}.tsv"
        localrule: True
        conda:
            "../envs/relusym.yaml"
        resources:
            mem_mb=2000,
            runtime=10,
        params:
            settings=SETTINGS.theory(name),
        script:
            "../workflow_scripts/theory_record.py"


rule theory:
    input:
        records=[THEORY_RECORD.format(statement=name) for name in STATEMENTS],
        changed=changed(*[THEORY_RECORD.format(statement=name) for name in STATEMENTS]),
        code=TABLE_CODE,
    output:
        table("theory", "Theory", {"statement": "All statements"}),
    log:
        f"{LOGS}/theory.log",
    benchmark:
        f"{BENCHMARKS}/tables/theory.tsv"
    conda:
        "../envs/relusym.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        notes=[f"Random draws from seed {SETTINGS.config['theory']['seed']}"],
    script:
        "../workflow_scripts/theory.py"
