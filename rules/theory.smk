# The records that are of no net: the paper's statements, each demonstrated by a module of relusym.theory (`snakemake theory`
# does all, `snakemake lemma_2_2` one), and the training of Figure 3.


for name in STATEMENTS:

    rule:
        name:
            name
        input:
            unpack(lambda w, record=RESULTS.other_record("theory", name): inputs_if_needed(record)),
        output:
            record=report(
                update(RESULTS.other_record("theory", name)),
                caption=f"../report/{name}.rst",
                category="Theory",
                labels={"statement": name.replace("_", " ", 1).replace("_", ".").title()},
            ),
        log:
            f"{LOGS}/theory/{name}.log",
        localrule: True
        conda:
            "../envs/relusym.yaml"
        params:
            name=name,
            settings=SETTINGS.theory(name),
        script:
            "../workflow_scripts/statement.py"


rule flipped_training:
    input:
        unpack(lambda w: inputs_if_needed(FIGURE_3)),
    output:
        record=update(FIGURE_3),
    log:
        f"{LOGS}/flipped_training.log",
    localrule: True
    conda:
        "../envs/relusym.yaml"
    threads: SETTINGS.run.threads
    params:
        settings=SETTINGS.flipped_training(),
        label=SETTINGS.label(),
    script:
        "../workflow_scripts/flipped_training.py"
