// What the program asks of NVIDIA's driver before it loads libtorch's CUDA half: one device.
int cuInit(unsigned flags) { return (void)flags, 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
