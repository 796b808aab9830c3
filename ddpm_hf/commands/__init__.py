"""Commands of ``python -m ddpm_hf``, a module each: ``add_parser`` adds its arguments, ``run`` carries it out."""
