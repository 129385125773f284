# The records that need no trained net: the paper's statements, each demonstrated by a module of relusym.theory (`snakemake
# theory` for all, `snakemake lemma_2_2` for one), and the training of Figure 3.


for name in STATEMENTS:

    rule:
        name:
            name
        output:
            record=in_report(
                RESULTS.record(RESULTS.statement(name)),
                caption=f"../report/{name}.rst",
                category="Theory",
                labels={"statement": name.replace("_", " ", 1).replace("_", ".").title()},
            ),
        log:
            f"{LOGS}/theory/{name}.log",
        localrule: True
        conda:
            ENVIRONMENT
        params:
            name=name,
            settings=SETTINGS.theory(name),
        script:
            "../workflow_scripts/statement.py"


rule flipped_training:
    input:
        lambda w: waits_for(RESULTS.flipped_training),
    output:
        record=update(RESULTS.record(RESULTS.flipped_training)),
    log:
        f"{LOGS}/flipped_training.log",
    localrule: True
    conda:
        ENVIRONMENT
    threads: SETTINGS.run.threads
    params:
        data=lambda w: read_by(RESULTS.flipped_training)["data"],
        settings=SETTINGS.flipped_training(),
        label=SETTINGS.label(),
    script:
        "../workflow_scripts/flipped_training.py"
