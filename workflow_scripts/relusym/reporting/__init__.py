"""The command `relusym` and its parts: reports and exact GCNNs, nets and images from files, the page."""


def main() -> int:
    """Run the command (command.py) and return its exit code, also after Ctrl-C during its imports."""
    try:
        from relusym.reporting import command

        return command.main()
    except KeyboardInterrupt:
        return 130
