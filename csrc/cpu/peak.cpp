#include "cpu/peak.h"

#include "sslfast/isa.h"

SSLFAST_DECLARE_KERNELS(PeakKernels, peak_kernels)

namespace sslfast {

SSLFAST_EXPORT const PeakKernels& find_peak_kernels(int isa) { return peak_kernels_for(isa); }

}  // namespace sslfast
