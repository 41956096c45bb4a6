// Fields that are integrated in the page, written from the equations that eqjax.fields has; a test compares their forces.
// Each takes its numbers by the names they have there, and gives z -> dz/dt.

// u / (1 - exp(-u)), which is 1 at u = 0.
const linoid = (u) => (Math.abs(u) < 1e-5 ? 1 + u / 2 + (u * u) / 12 : -u / Math.expm1(-u));
const product = (matrix, vector) => matrix.map((row) => row.reduce((sum, w, j) => sum + w * vector[j], 0));
const entry = (value, i) => (Array.isArray(value) ? value[i] : value);

const FIELDS = {
  HodgkinHuxley(p) {
    const pace = 3 ** ((p.temperature - 6.3) / 10);
    return ([v, m, h, n]) => {
      const sodium = p.g_Na * m ** 3 * h * (v - p.E_Na), potassium = p.g_K * n ** 4 * (v - p.E_K);
      const inward = p.current + p.input - sodium - potassium - p.g_L * (v - p.E_L);
      const gate = (open, shut, g) => pace * (open * (1 - g) - shut * g);
      return [
        inward / p.C,
        gate(linoid((v + 40) / 10), 4 * Math.exp(-(v + 65) / 18), m),
        gate(0.07 * Math.exp(-(v + 65) / 20), 1 / (1 + Math.exp(-(v + 35) / 10)), h),
        gate(0.1 * linoid((v + 55) / 10), 0.125 * Math.exp(-(v + 65) / 80), n),
      ];
    };
  },

  ContinuousHopfield(p) {
    const { weight, bias, time, input } = p, beta = p["lagrangian.beta"];
    return (z) => product(weight, z.map((u) => Math.tanh(beta * u))).map((w, i) => (w + bias[i] + entry(input, i) - z[i]) / time);
  },

  GainNetwork({ gain, weight, input }) {
    return (z) => product(weight, z.map(Math.tanh)).map((w, i) => gain * w + entry(input, i) - z[i]);
  },

  Kuramoto({ frequencies, coupling }) {
    return (z) => {
      const mean = (f) => z.reduce((sum, phase) => sum + f(phase), 0) / z.length;
      const sine = mean(Math.sin), cosine = mean(Math.cos);
      return z.map((phase, i) => frequencies[i] + coupling * (sine * Math.cos(phase) - cosine * Math.sin(phase)));
    };
  },
};
