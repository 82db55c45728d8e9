"""``python -m tinydiff.kernels.cpu`` compiles every kernel ahead."""
from tinydiff.backends.table import obstacle

if __name__ == "__main__":
    if obstacle():
        print(f"nothing to compile: {obstacle()}")
    else:
        from tinydiff.kernels.cpu.ahead import main
        main()
