import subprocess
import sys

CODE = """
import sys, types
# The package's own __init__ is not under test here.
package = types.ModuleType("keras_dlopt")
package.__path__ = [{path!r}]
sys.modules["keras_dlopt"] = package
import keras_dlopt.codecs
import keras_dlopt.codecs.container
heavy = {{"keras", "tensorflow", "jax", "torch", "ml_dtypes", "sklearn"}}
print(sorted(heavy & set(sys.modules)))
"""


def test_codecs_need_numpy_alone():
    import keras_dlopt

    code = CODE.format(path=keras_dlopt.__path__[0])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr
