#!/usr/bin/env python3
"""Makes rwkv4_sm{61,80,90}_{f16,int8}.ptx from rwkv4.cu, with NVRTC and no GPU.

usage: build.py [--check] [--nvrtc FOLDER] [--ptxas FILE]

NVRTC 12.0 is taken, whose PTX (8.0) every driver since 525 understands. It comes from the wheel
nvidia-cuda-nvrtc-cu12 of PyPI, which is downloaded (23 MB) into a temporary folder when --nvrtc does not
name its lib folder. --check writes nothing and fails when the files
are of other sources, or have other kernels or parameters than these give; the rest may differ, because NVRTC does not
allot registers the same way in every run. --ptxas
also assembles them, and prints registers and spills.
"""
import argparse, ctypes, glob, hashlib, os, re, subprocess, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCES = ["rwkv4.cu", "common.cuh", "decode.cuh", "rows.cuh", "single.cuh", "tensor.cuh", "products.cuh", "ring.cuh", "resident.cuh"]
WHEEL = "nvidia-cuda-nvrtc-cu12==12.0.140"
MODULES = [(arch, int8) for arch in ("61", "80", "90") for int8 in (0, 1)]


def fetch(folder):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
    subprocess.run(pip + ["--only-binary=:all:", WHEEL], check=True)
    return os.path.join(folder, "nvidia", "cuda_nvrtc", "lib")


def compile_ptx(lib, arch, int8):
    for builtins in glob.glob(os.path.join(lib, "libnvrtc-builtins.so*")):
        ctypes.CDLL(builtins, mode=ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(glob.glob(os.path.join(lib, "libnvrtc.so*"))[0])
    read = lambda name: open(os.path.join(HERE, name), "rb").read()
    headers = SOURCES[1:]
    program = ctypes.c_void_p()
    texts = (ctypes.c_char_p * len(headers))(*map(read, headers))
    names = (ctypes.c_char_p * len(headers))(*[h.encode() for h in headers])
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), read(SOURCES[0]), b"rwkv4.cu", len(headers), texts, names)
    options = [b"--gpu-architecture=compute_" + arch.encode(), b"--std=c++17", b"--use_fast_math", b"--define-macro=INT8_WEIGHTS=%d" % int8]
    result = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if log.value.strip():
        print(log.value.decode(), file=sys.stderr)
    if result != 0:
        sys.exit(f"compute_{arch}: NVRTC refuses it ({result})")
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    return ptx.value.decode()


def outline(ptx):
    """The hash of the sources, the target, and all kernels with their parameters."""
    return ptx.split("\n", 1)[0], re.findall(r"^\.(?:version|target) .*$|\.entry \w+|\.param .*_param_\d+.*$", ptx, re.M)


def source_hash():
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update(open(os.path.join(HERE, name), "rb").read())
    return digest.hexdigest()


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--check", action="store_true")
    arguments.add_argument("--nvrtc")
    arguments.add_argument("--ptxas")
    arguments = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lib = arguments.nvrtc or fetch(folder)
        for arch, int8 in MODULES:
            ptx = f"// sources {source_hash()}\n" + compile_ptx(lib, arch, int8)
            path = os.path.join(HERE, f"rwkv4_sm{arch}_{'int8' if int8 else 'f16'}.ptx")
            if arguments.check:
                if not os.path.exists(path) or outline(open(path).read()) != outline(ptx):
                    sys.exit(f"{path} is not what its sources give: run {sys.argv[0]}")
            else:
                open(path, "w").write(ptx)
            print(f"{path}: {len(ptx)} bytes, {ptx.count('.entry')} kernels")
            if arguments.ptxas:
                command = [arguments.ptxas, "-v", f"-arch=sm_{arch}", path, "-o", os.path.join(folder, "out")]
                log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
                print(re.sub(r"ptxas info\s+: ", "", log))


if __name__ == "__main__":
    main()
