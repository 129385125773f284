"""The command `relusym` and what stands behind it: a report on one net, nets and images from files, the page."""
