"""An engine process as `actors.engine`, with vLLM as it is: what an engine does on a version that nobody has tried."""

from actors import engine, vllm_patches

vllm_patches.TRIED_ON = ()

if __name__ == "__main__":
    engine.main()
