"""What is installed, and where the top-level rooms go: data/ becomes `tinydiff.data`."""

from setuptools import find_packages, setup

# A reader expects these folders at the top; installed, they are part of the package.
# Never install one under its own name: `kernels` belongs to a library that transformers imports.
ROOMS = {f"tinydiff.{room}": room.replace(".", "/")
         for room in find_packages(include=["data", "kernels", "kernels.*"])}

DEV = ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "ruff==0.17.6", "jupytext>=1.16",
       "safetensors>=0.4"]

setup(
    name="tinydiff",
    version="0.1.0",
    description="Diffusion models from scratch, every gradient written by hand, in NumPy that "
                "reads like the papers",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    install_requires=[
        "numpy>=1.24",
        "pillow>=10.1",
        "matplotlib>=3.7",
        "scipy>=1.10",                   # erf
        "tqdm>=4.64",
        "threadpoolctl>=3.1",
    ],
    extras_require={
        "cpu": ["numba>=0.59"],
        "cuda": ["cupy-cuda13x", "numba-cuda"],
        "mpi": ["mpi4py"],
        "nvrtc": ["nvidia-cuda-nvrtc", "cuda-bindings"],     # compiles for a device without one
        "notebooks": ["jupytext>=1.16", "jupyterlab>=4"],
        "dev": DEV,
    },
    packages=[*find_packages(include=["tinydiff", "tinydiff.*"]), *ROOMS],
    package_dir=ROOMS,
    package_data={
        "tinydiff": ["recipes/*.toml"],
        "tinydiff.kernels": ["README.md", "*.cu", "*.cuh"],
        "tinydiff.kernels.emulator": ["*.h", "*.cpp"],
        "tinydiff.data": ["NOTICE", "README.md", "*.jsonl", "*.json", "*.png", "*.webp", "*.npz",
                          "*.gz", "fashion_mnist/*", "models/**/*"],
    },
    entry_points={"console_scripts": ["tinydiff = tinydiff.cli:main"]},
)
