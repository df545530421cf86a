"""`python -m sam2_3dmed` is the command `sam2-3dmed`."""

from sam2_3dmed.cli.main import main

if __name__ == "__main__":
    main()
