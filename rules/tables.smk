# The tables and the figures, from records and the arrays beside them alone. What each of them shows is in
# relusym/findings/selection.py, how it is made in relusym/findings. They always show the present config, records and code.


for name in selection.tables(SETTINGS):

    rule:
        name:
            name
        input:
            lambda w, name=name: asked_of(name),
        output:
            files(name),
            note=update(note(name)),
        log:
            f"{LOGS}/{name}.log",
        localrule: True
        conda:
            ENVIRONMENT
        params:
            name=name,
            about=lambda w, name=name: about(name),
            shown=lambda w, name=name: shown_by(name),
        script:
            "../workflow_scripts/table.py"


for name in selection.figures(SETTINGS):

    rule:
        name:
            name
        input:
            lambda w, name=name: asked_of(name),
        output:
            files(name),
            note=update(note(name)),
        log:
            f"{LOGS}/{name}.log",
        localrule: True
        conda:
            ENVIRONMENT
        params:
            name=name,
            about=lambda w, name=name: about(name),
            shown=lambda w, name=name: shown_by(name),
        script:
            "../workflow_scripts/figure.py"


rule filter_pairs:  # for any net: snakemake results/<scale>/figures/filters/conv2-gcnn-3.png
    input:
        lambda w: [
            file_to_wait_for(key)
            for key in [RESULTS.key("flip_merge", (w.model, int(w.seed)))]
            if is_to_do(key)
        ],
    output:
        multiext(f"{FOLDER}/figures/filters/{{layer}}-{{model}}-{{seed}}", ".png", ".pdf"),
    log:
        f"{LOGS}/filter_pairs/{{layer}}-{{model}}-{{seed}}.log",
    wildcard_constraints:
        layer="conv1|conv2",
        seed=r"\d+",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        name="filter_pairs",
        about=lambda w: {
            **about("figure5" if "figure5" in SHOWN else "zero_filters"),
            "models": [w.model],
            "layer": w.layer,
            "flipped_back": False,
        },
        shown=lambda w: {
            "filters": [RESULTS.prefix + RESULTS.filters(RESULTS.key("flip_merge", (w.model, int(w.seed))))]
        },
    script:
        "../workflow_scripts/figure.py"
