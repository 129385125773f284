# The tables and figures, made only from records and the arrays beside them, each by its module in relusym/findings. They always
# show the present config, records and code.


for name in FINDINGS:

    rule:
        name:
            name
        input:
            lambda w, name=name: missing(name),
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
            selection=lambda w, name=name: selected(name),
            files=lambda w, name=name: files_read(name),
        script:
            "../workflow_scripts/finding.py"


# For a paper of yours: snakemake latex, or for one table: snakemake table2 results/<scale>/tables/table2.tex
LATEX = [f"{stem(name)}.{'tex' if isinstance(FINDINGS[name], Table) else 'pdf'}" for name in FINDINGS]


rule latex:
    input:
        LATEX,
        [note(name) for name in FINDINGS],  # otherwise an outdated file would count as done


rule for_latex:
    input:
        lambda w: note(Path(w.file).stem),
    output:
        f"{FOLDER}/{{file}}",
    log:
        f"{LOGS}/for_latex/{{file}}.log",
    wildcard_constraints:
        file="|".join(file.removeprefix(f"{FOLDER}/").replace(".", r"\.") for file in LATEX),
    localrule: True
    conda:
        ENVIRONMENT
    params:
        name=lambda w: Path(w.file).stem,
        selection=lambda w: selected(Path(w.file).stem),
        files=lambda w: files_read(Path(w.file).stem),
    script:
        "../workflow_scripts/finding.py"


use rule for_latex as filter_pairs with:  # for any net: snakemake results/<scale>/figures/filters/conv2-gcnn-3.png (or .pdf)
    input:
        lambda w: [
            file_to_wait_for(key)
            for key in [RESULTS.key("flip_merge", (w.model, int(w.seed)))]
            if is_to_do(key)
        ],
    output:
        f"{FOLDER}/figures/filters/{{layer}}-{{model}}-{{seed}}.{{ending}}",
    log:
        f"{LOGS}/filter_pairs/{{layer}}-{{model}}-{{seed}}.{{ending}}.log",
    wildcard_constraints:
        layer="conv1|conv2",
        seed=r"\d+",
        ending="png|pdf",
    params:
        name="figure5",  # whose module draws these pairs
        selection=lambda w: {
            "names": SETTINGS.names,
            **filter_pairs.select(SETTINGS, w.layer, [w.model]),
        },
        files=lambda w: {
            "filters": [RESULTS.prefix + RESULTS.filters(RESULTS.key("flip_merge", (w.model, int(w.seed))))]
        },
