"""``python -m jobs``: command line of all steps."""

if __name__ == "__main__":
    from jobs.startup.fast_exit import FastExit

    fast_exit = FastExit()
    try:
        from jobs.cli import main
    except ModuleNotFoundError as error:
        if (error.name or "jobs").partition(".")[0] in ("jobs", "cma_clip_core", "schemas"):
            raise
        raise SystemExit(
            f"error: {error.name} is not installed, because a step needs more than a model does: "
            "pip install 'catalog-attribute-tagger[pipeline]'"
        ) from None

    fast_exit.run(main)
