# The tables and the figures, from records and the arrays beside them alone. What each of them shows is in
# relusym/findings/selection.py, how it is made in relusym/findings. They always show the present config, records and code.


for name in selection.tables(SETTINGS):

    rule:
        name:
            name
        input:
            unpack(lambda w, name=name: made_of(name)),
        output:
            files(name),
            note=update(note(name)),
        log:
            f"{LOGS}/{name}.log",
        localrule: True
        conda:
            "../envs/relusym.yaml"
        params:
            name=name,
            about=lambda w, name=name: about(name),
        script:
            "../workflow_scripts/table.py"


for name in selection.figures(SETTINGS):

    rule:
        name:
            name
        input:
            unpack(lambda w, name=name: made_of(name)),
        output:
            files(name),
            note=update(note(name)),
        log:
            f"{LOGS}/{name}.log",
        localrule: True
        conda:
            "../envs/relusym.yaml"
        params:
            name=name,
            about=lambda w, name=name: about(name),
        script:
            "../workflow_scripts/figure.py"


rule filter_pairs:  # for any net: snakemake results/<scale>/figures/filters/conv2-gcnn-3.png
    input:
        filters=ancient(FILTERS.replace("{matching}", "")),
    output:
        multiext(f"{FOLDER}/figures/filters/{{layer}}-{{model}}-{{seed}}", ".png", ".pdf"),
    log:
        f"{LOGS}/filter_pairs/{{layer}}-{{model}}-{{seed}}.log",
    wildcard_constraints:
        layer="conv1|conv2",
    localrule: True
    conda:
        "../envs/relusym.yaml"
    params:
        name="filter_pairs",
        about=lambda w: {
            **selection.about(SETTINGS, "figure5" if "figure5" in selection.figures(SETTINGS) else "zero_filters"),
            "models": [w.model],
            "layer": w.layer,
            "flipped_back": False,
        },
    script:
        "../workflow_scripts/figure.py"
