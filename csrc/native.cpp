// sslfast._native: what was built, what this machine can run, its arithmetic limit, and hooks for
// tests. No tensor crosses it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <torch/csrc/stable/ops.h>

#include <chrono>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "cpu/peak.h"
#include "cpu/similarity/keep.h"
#include "sslfast/constants.h"
#include "sslfast/isa.h"
#include "sslfast/sorting/relaxation.h"

namespace py = pybind11;

namespace {

using sslfast::Isa;

constexpr Isa kWorstFirst[] = {Isa::kEmulated, Isa::kBaseline,   Isa::kAvx2,
                               Isa::kAvx512,   Isa::kAvx512Bf16, Isa::kAmx};

std::vector<Isa> compiled_isas() {
  std::vector<Isa> found;
  for (const Isa isa : kWorstFirst)
    if (sslfast::isa_compiled(isa)) found.push_back(isa);
  return found;
}

// Name, number, and why it cannot run here, empty where it can.
using IsaReport = std::tuple<std::string, int, std::string>;
std::vector<IsaReport> isas() {
  std::vector<IsaReport> found;
  for (const Isa isa : compiled_isas())
    found.emplace_back(sslfast::isa_name(isa), int(isa), sslfast::isa_missing(isa));
  return found;
}

int isa_number(const std::string& name) {
  std::string expected;
  for (const Isa isa : compiled_isas()) {
    if (name == sslfast::isa_name(isa)) return int(isa);
    expected += std::string(expected.empty() ? "" : ", ") + sslfast::isa_name(isa);
  }
  throw py::value_error("isa = '" + name + "'; expected one of " + expected);
}

py::dict build_info() {
  py::dict info;
  info["version"] = SSLFAST_VERSION;
  info["compiler"] = SSLFAST_COMPILER;
  info["torch"] = SSLFAST_TORCH_VERSION;
  info["stable_abi"] = "2.10";
  info["build_type"] = SSLFAST_BUILD_TYPE;
  std::vector<std::string> names;
  for (const Isa isa : compiled_isas()) names.push_back(sslfast::isa_name(isa));
  info["isas"] = names;
  return info;
}

// How many threads of torch's pool a parallel loop really runs on.
int distinct_threads() {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  const int64_t threads = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const std::lock_guard<std::mutex> lock(mutex);
    seen.insert(std::this_thread::get_id());
  });
  return int(seen.size());
}

// How many products of bfloat16 one product of `dtype` takes on a set's matrix instructions, 0
// where it takes none of them.
int matrix_products(const std::string& isa, const std::string& dtype, int float_terms) {
  using sslfast::Element;
  static const std::map<std::string, Element> kElements = {{"bfloat16", Element::kBf16},
                                                           {"float16", Element::kHalf},
                                                           {"float32", Element::kFloat},
                                                           {"float64", Element::kDouble}};
  const auto element = kElements.find(dtype);
  if (element == kElements.end())
    throw py::value_error("dtype = '" + dtype +
                          "'; expected bfloat16, float16, float32 or float64");
  if (float_terms < 1 || float_terms > 3)
    throw py::value_error("float_terms must be 1, 2 or 3, got " + std::to_string(float_terms));
  return sslfast::matrix_products(Isa(isa_number(isa)), element->second, float_terms);
}

// Floating-point operations a second (a multiply-add counts two), summed over `threads` threads
// that repeat `rounds` rounds of a loop.
double peak(double (*loop)(int64_t rounds, double* checksum), int64_t rounds, double seconds,
            int threads) {
  if (!(seconds > 0) || seconds > 60)
    throw py::value_error("seconds must lie in (0, 60], got " + std::to_string(seconds));
  if (threads < 1 || threads > 4096)
    throw py::value_error("threads must lie in [1, 4096], got " + std::to_string(threads));
  std::vector<double> rates(threads), sums(threads);
  const auto measure = [&](int thread) {
    using Clock = std::chrono::steady_clock;
    double operations = 0;
    const auto start = Clock::now();
    std::chrono::duration<double> spent{};
    do {
      operations += loop(rounds, &sums[thread]);
      spent = Clock::now() - start;
    } while (spent.count() < seconds);
    rates[thread] = operations / spent.count();
  };
  std::vector<std::thread> workers;
  for (int thread = 0; thread < threads; ++thread) workers.emplace_back(measure, thread);
  for (std::thread& worker : workers) worker.join();
  double total = 0;
  for (const double rate : rates) total += rate;
  return total;
}
double fma_peak(const std::string& isa, const std::string& dtype, double seconds, int threads) {
  if (dtype != "float32" && dtype != "float64")
    throw py::value_error("dtype = '" + dtype + "'; expected float32 or float64");
  const sslfast::PeakKernels& kernels = sslfast::find_peak_kernels(isa_number(isa));
  return peak(dtype == "float32" ? kernels.fma_float : kernels.fma_double, 100000, seconds,
              threads);
}
// Of products of bfloat16.
double matrix_peak(const std::string& isa, double seconds, int threads) {
  const sslfast::MatrixPeakKernels* kernels = sslfast::find_matrix_peak_kernels(isa_number(isa));
  if (!kernels) throw py::value_error("isa = '" + isa + "' has no matrix instructions");
  return peak(kernels->multiply, 100, seconds, threads);
}

std::vector<double> exp_hook(const std::string& isa, const std::string& dtype,
                             const std::vector<double>& x) {
  const sslfast::PeakKernels& kernels = sslfast::find_peak_kernels(isa_number(isa));
  std::vector<double> out(x.size());
  if (dtype == "float64") {
    kernels.exp_double(x.data(), out.data(), int64_t(x.size()));
    return out;
  }
  const std::vector<float> narrow(x.begin(), x.end());
  std::vector<float> result(x.size());
  kernels.exp_float(narrow.data(), result.data(), int64_t(x.size()));
  return {result.begin(), result.end()};
}

// Numbers that Python's formulas know too, by their names there.
py::dict constants() {
  py::dict found;
  found["LARGEST_BLOCK"] = sslfast::kLargestBlock;
  found["LARGEST_STRIP_ROWS"] = sslfast::kLeastStripBlocks * sslfast::kLargestBlock;
  found["STRIP_BYTES"] = sslfast::kStripBytes;
  found["PACKED_DEPTH"] = sslfast::kPackedDepth;
  found["PANEL"] = sslfast::kMostPanel;
  found["CACHE_HEADER"] = sslfast::kCacheHeader;
  return found;
}

// The numbers of an enum's values, by their names in Python.
using Values = std::map<std::string, int>;
std::map<std::string, Values> enums() {
  using sslfast::Keep, sslfast::Relaxation;
  const Values keep{{"NOTHING", int(Keep::kNothing)},
                    {"SUMS", int(Keep::kSums)},
                    {"MEAN_KEYS", int(Keep::kMeanKeys)},
                    {"EXPONENTIALS", int(Keep::kExponentials)}};
  const Values relaxations{{"cauchy", int(Relaxation::kCauchy)},
                           {"reciprocal", int(Relaxation::kReciprocal)},
                           {"optimal", int(Relaxation::kOptimal)},
                           {"logistic", int(Relaxation::kLogistic)},
                           {"logistic_phi", int(Relaxation::kLogisticPhi)},
                           {"gaussian", int(Relaxation::kGaussian)}};
  return {{"Keep", keep}, {"RELAXATIONS", relaxations}};
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Build and machine report, arithmetic limit and test hooks of sslfast's native code.";
  m.def("build_info", build_info, "Version, compiler, torch and instruction sets of this build.");
  m.def("isas", isas, "Instruction sets compiled, the best last: name, number, why missing.");
  m.def("constants", constants, "Numbers that formulas in Python repeat, by their names there.");
  m.def("enums", enums, "Numbers of the values of enums that both sides have.");
  m.def("num_threads", [] { return int(torch::stable::get_num_threads()); });
  m.def("distinct_threads", distinct_threads, py::call_guard<py::gil_scoped_release>());
  m.def("fma_peak", fma_peak, py::arg("isa"), py::arg("dtype") = "float32",
        py::arg("seconds") = 0.5, py::arg("threads") = 1, py::call_guard<py::gil_scoped_release>());
  m.def("matrix_products", matrix_products, py::arg("isa"), py::arg("dtype"),
        py::arg("float_terms") = 3,
        "Products of bfloat16 for one product of `dtype`, 0 by vector instructions.");
  m.def("matrix_peak", matrix_peak, py::arg("isa"), py::arg("seconds") = 0.5,
        py::arg("threads") = 1, py::call_guard<py::gil_scoped_release>());
  m.def("exp", exp_hook, py::arg("isa"), py::arg("dtype"), py::arg("x"));
}
